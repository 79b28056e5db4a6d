"""The stations: one function an asset. Each skips what is current, else works, writes and seals.

A notebook, the command line and Dagster all call these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import calibrate, calibration, copies, encode, index, shards
from .compress import compress_shard
from .errors import BadInputError, StaleOutputError
from .files import (
    Manifest,
    atomic_path,
    checksum,
    current,
    damage,
    digest_of,
    lock,
    read_manifest,
    save_npy,
    seal,
    seal_parts,
    write_json,
)
from .given_model import given_model, take_model
from .group_table import duplicate_groups as group_rows
from .metadata import Metadata
from .model import load_model
from .pairs import find_pairs, write_pairs
from .publish import deduped_digest, drop_list_digest
from .publish import deduped_metadata as publish_metadata
from .publish import drop_list as publish_drop_list
from .publish import dup_bitmap as publish_bitmap
from .remote_files import is_remote
from .remote_files import state as remote_state
from .run import INDEX_SETTINGS, MODEL_SETTINGS, PAIR_SETTINGS, Run
from .sample import text_features
from .shards import Shard
from .train import train
from .trained import TrainedIndex, choose_lists
from .verify import Pairs

__all__ = [
    "Run",
    "clip_features",
    "deduped_metadata",
    "drop_list",
    "dup_bitmap",
    "duplicate_groups",
    "duplicate_pairs",
    "index_shards",
    "metadata",
    "snip_features",
    "snip_index",
    "snip_model",
    "trained_index",
]

Work = Callable[[Shard, Path], dict[str, Any]]
# Rows whose pairs are held in memory at once, for each GiB that may be planned with.
JOIN_ROWS_PER_GB = 4_000_000
HELD_OUT, FEWEST_TO_HOLD_OUT = 0.2, 512


def _finish(output: Path, inputs: dict[str, str], work: Callable[[], dict[str, Any]]) -> Manifest:
    """The manifest of an output; made now unless it is current."""
    if (manifest := current(output, inputs)) is not None:
        return manifest
    with lock(output):
        # Another run may have made it while we waited.
        if (manifest := current(output, inputs)) is not None:
            return manifest
        started = time.perf_counter()
        facts = work()
        seconds = round(time.perf_counter() - started, 3)
        return seal(output, inputs, **{"seconds": seconds, **facts})


def _each(
    run: Run,
    keys: list[str],
    place: Callable[[str], Path],
    inputs: Callable[[Shard], dict[str, str]],
    work: Work,
) -> dict[str, Manifest]:
    """Work shard by shard; a bad shard is refused at the end, after the good ones are done."""
    result: dict[str, Manifest] = {}
    refused: list[BadInputError] = []
    for shard in run.registry.only(keys):
        output = place(shard.key)
        try:
            result[shard.key] = _finish(output, inputs(shard), partial(work, shard, output))
        except BadInputError as error:
            refused.append(error)
    if len(refused) > 1:
        first = " ".join(str(error) for error in refused[:5])
        raise BadInputError(f"{len(refused)} shards refused, {len(result)} done. {first}")
    if refused:
        raise refused[0]
    return result


def _source_state(path: Path) -> str:
    """Changes when a source file does, without reading it."""
    if is_remote(path):
        return remote_state(path)
    try:
        status = path.stat()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); put it back.") from error
    return f"{status.st_size}-{status.st_mtime_ns}"


def metadata(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Check the metadata shards and note their columns."""

    def work(shard: Shard, output: Path) -> dict[str, Any]:
        file = shards.parquet_file(shard.metadata)
        schema = {f.name: str(f.type) for f in file.schema_arrow}
        facts = {"rows": file.metadata.num_rows, "columns": schema}
        write_json(output, facts)
        return {**facts, "bytes": int(_source_state(shard.metadata).partition("-")[0])}

    def inputs(shard: Shard) -> dict[str, str]:
        shards.changed(shard)
        return {"source": _source_state(shard.metadata)}

    return _each(run, keys, run.layout.metadata, inputs, work)


def clip_features(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Check every row of the feature shards and hash it."""

    def inputs(shard: Shard) -> dict[str, str]:
        shards.changed(shard)
        return {"source": _source_state(shard.features)}

    return _each(
        run,
        keys,
        run.layout.clip_features,
        inputs,
        lambda shard, output: copies.hash_shard(shard.features, output, run.settings.workers),
    )


def snip_model(run: Run) -> Manifest:
    """Train the net on the shards now registered, or take over one; kept when shards arrive."""
    inputs = {"settings": run.digest(MODEL_SETTINGS)}
    given = given_model(run)
    if given is not None:
        inputs["file"] = checksum(given)

    def work() -> dict[str, Any]:
        if given is not None:
            return take_model(run, given)
        # Rows that were never checked are not trained on.
        ready = tuple(run.hashed()) or run.registry.shards
        registry = shards.Registry(run.registry.source, ready)
        features, text = shards.raw_features(registry), text_features(registry)
        return train(features, run.settings, run.layout.snip_model, text=text)

    return _finish(run.layout.snip_model, inputs, work)


def snip_features(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Compress feature shards."""
    model = run.version(run.layout.snip_model, "snip_model")
    net = load_model(run.layout.snip_model)

    def inputs(shard: Shard) -> dict[str, str]:
        features = run.version(run.layout.clip_features(shard.key), f"clip_features {shard.key}")
        return {"snip_model": model, "clip_features": features}

    return _each(
        run,
        keys,
        run.layout.snip_features,
        inputs,
        lambda shard, output: compress_shard(net, shard.features, output, run.settings),
    )


def trained_index(run: Run) -> Manifest:
    """Train the inverted lists and the codec, and calibrate; kept when shards arrive."""
    model = run.version(run.layout.snip_model, "snip_model")
    inputs = {"snip_model": model, "settings": run.digest(INDEX_SETTINGS)}
    return _finish(run.layout.trained_index, inputs, lambda: _train_index(run))


def _train_index(run: Run) -> dict[str, Any]:
    registry, settings = run.registry, run.settings
    lists = settings.lists or choose_lists(registry.rows)
    ready = run.hashed()
    run.require_shards("clip_features", ready)
    run.require_shards("snip_features", ready)
    rows = _first_copies(run, max(65_536, lists * 128))
    # A fifth is held out: the codec fits the rows it was trained on better than any other.
    held_out = np.random.default_rng(settings.seed).random(len(rows)) < HELD_OUT
    held_out &= len(rows) > FEWEST_TO_HOLD_OUT
    rows = rows[~held_out]
    snip = shards.snip_features(run.layout, registry)
    trained = TrainedIndex.train(
        snip.take(rows).astype(np.float32), lists, settings.codec, settings.seed, settings.workers
    )
    chosen = _first_copies(run, calibration.budget(registry.rows, registry.dim))
    raw = _unit_rows(shards.raw_features(registry), chosen)
    sample = calibration.Sample(
        raw, snip.take(chosen).astype(np.float32), ~np.isin(chosen, rows), registry.rows
    )
    found, axes = calibrate.calibrate(trained, sample, settings)
    with atomic_path(run.layout.trained_index) as folder:
        folder.mkdir(parents=True)
        trained.save(folder / "trained.index")
        write_json(folder / "calibration.json", found.to_json())
        save_npy(folder / "axes.npy", axes)
    return {
        "lists": trained.lists,
        "codec": settings.codec,
        "code_bytes": trained.codec.size,
        "rows_read": len(rows),
        **found.to_json(),
    }


def _unit_rows(features: shards.Features, rows: np.ndarray) -> np.ndarray:
    """Rows by row id, float32, of unit length; never held in two precisions as a whole."""
    out = np.empty((len(rows), features.shard(0).shape[1]), np.float32)
    for start in range(0, len(rows), 8192):
        part = features.take(rows[start : start + 8192]).astype(np.float32)
        out[start : start + 8192] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def _first_copies(run: Run, most: int) -> np.ndarray:
    """Row ids of a random sample, ascending, without exact copies."""
    ready = run.hashed()
    ends = np.cumsum([s.rows for s in ready])
    total = int(ends[-1]) if ready else 0
    if total > most:
        drawn = np.random.default_rng(run.settings.seed).choice(total, most, replace=False)
        rows = np.sort(drawn)
    else:
        rows = np.arange(total)
    # Place among the checked rows -> row id.
    ahead = np.array([s.stop for s in ready], np.int64) - ends
    rows = rows + ahead[np.searchsorted(ends, rows, "right")]
    first = np.unique(run.hashes(rows), return_index=True)[1]
    return rows[np.sort(first)]


def index_shards(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Assign and encode shards."""
    version = run.version(run.layout.trained_index, "trained_index")
    trained, axes, chosen = run.trained(), run.axes(), run.calibration()

    def inputs(shard: Shard) -> dict[str, str]:
        snip = run.version(run.layout.snip_features(shard.key), f"snip_features {shard.key}")
        return {"trained_index": version, "snip_features": snip}

    def work(shard: Shard, output: Path) -> dict[str, Any]:
        source = run.layout.snip_features(shard.key)
        radius, probes = chosen.radius, chosen.probes
        workers = run.settings.workers
        return encode.encode_shard(trained, source, output, axes, radius, probes, workers)

    return _each(run, keys, run.layout.index_shard, inputs, work)


def snip_index(run: Run) -> Manifest:
    """Merge the index shards that are there."""
    layout = run.layout
    present = run.indexed()
    if not present:
        raise StaleOutputError(f"{layout.root}: no index shards; materialise index_shards first.")
    inputs = {
        "trained_index": run.version(layout.trained_index, "trained_index"),
        "index_shards": digest_of({s.key: s.version for s in present}),
    }
    with lock(layout.snip_index):
        if (manifest := current(layout.snip_index, inputs)) is not None:
            return manifest
        return _merge_index(run, present, inputs)


def _merge_index(run: Run, present: list[index.IndexedShard], inputs: dict[str, str]) -> Manifest:
    layout, started = run.layout, time.perf_counter()
    segments = index.update(layout.snip_index, present, run.registry.rows, run.check)
    seal(layout.snip_index / "segments.json", inputs)
    sizes = index.SnipIndex.open(layout).list_sizes
    rows = int(sizes.sum())
    parts = [layout.snip_index / name for name in ("segments.json", *(s["name"] for s in segments))]
    trained = (layout.trained_index / "trained.index").stat().st_size
    bytes_all = trained + sum(m.bytes for p in parts if (m := read_manifest(p)))
    return seal_parts(
        layout.snip_index,
        inputs,
        parts,
        rows=rows,
        segments=len(segments),
        bytes_per_row=bytes_all / rows,
        list_sizes=_histogram(sizes),
        imbalance=float(len(sizes) * (sizes.astype(float) ** 2).sum() / rows**2),
        shards_missing=[k for k in run.registry.keys if k not in {s.key for s in present}],
        seconds=round(time.perf_counter() - started, 3),
    )


def _histogram(values: np.ndarray) -> list[int]:
    """At most 4,096 values, sorted: enough to draw a histogram."""
    ordered = np.sort(values)
    if len(ordered) > 4096:
        ordered = ordered[np.linspace(0, len(ordered) - 1, 4096).astype(int)]
    return ordered.tolist()


def duplicate_pairs(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Join shards with all earlier rows; what is not current is done together, by memory."""
    layout, wanted = run.layout, run.registry.only(keys)
    inputs = _pair_inputs(run)
    todo = [s for s in wanted if current(layout.duplicate_pairs(s.key), inputs[s.key]) is None]
    merged = {k for s in index.read_segments(layout.snip_index) for k in s["keys"]}
    if absent := [s.key for s in wanted if s.key not in merged]:
        raise StaleOutputError(
            f"shard {absent[0]}: not in snip_index yet; materialise index_shards for it, then "
            "snip_index."
        )
    most = int(run.settings.memory_gb * JOIN_ROWS_PER_GB)
    group: list[Shard] = []
    for shard in [*todo, None]:
        if group and (shard is None or sum(s.rows for s in group) + shard.rows > most):
            _join_group(run, group, inputs)
            group = []
        if shard is not None:
            group.append(shard)
    found = {s.key: current(layout.duplicate_pairs(s.key), inputs[s.key]) for s in wanted}
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def _pair_inputs(run: Run) -> dict[str, dict[str, str]]:
    """What the pairs of each shard are made from: the shards up to itself, never later ones."""
    trained = run.version(run.layout.trained_index, "trained_index")
    settings = run.digest(PAIR_SETTINGS)
    return {
        key: {"trained_index": trained, "rows": chain, "settings": settings}
        for key, chain in _chains(run).items()
    }


def _chains(run: Run) -> dict[str, str]:
    """Key -> digest of the codes of its shard and of all earlier ones."""
    versions = {s.key: s.version for s in run.indexed()}
    chain, result = "", {}
    for key in run.registry.keys:
        chain = digest_of([chain, key, versions.get(key)])
        result[key] = chain
    return result


def unpaired(run: Run) -> list[str]:
    """Shards without pairs, or whose pairs lack rows of an earlier shard that came since."""

    def paired(key: str, chain: str) -> bool:
        manifest = read_manifest(run.layout.duplicate_pairs(key))
        return manifest is not None and manifest.inputs.get("rows") == chain

    return [key for key, chain in _chains(run).items() if not paired(key, chain)]


def _require_earlier(run: Run, last: int) -> None:
    """Check what the join of shards up to ordinal `last` reads, before it reads it."""
    earlier = [s for s in run.hashed() if s.ordinal <= last]
    run.version(run.layout.snip_index, "snip_index")
    run.require_shards("clip_features", earlier)
    run.require_shards("index_shards", earlier)
    if run.settings.tier != "codes":
        run.require_shards("snip_features", earlier)


def _join_group(run: Run, group: list[Shard], inputs: dict[str, dict[str, str]]) -> None:
    started = time.perf_counter()
    last = group[-1].ordinal
    _require_earlier(run, last)
    later, first = run.exact_copies(last)
    work = run.join(last, later)
    found, counts = find_pairs(work, [run.query_shard(s) for s in group], run.settings.workers)
    seconds = time.perf_counter() - started
    rows = sum(s.rows for s in group)
    for shard, near in zip(group, found, strict=True):
        own = (later >= shard.start) & (later < shard.stop)
        same = Pairs(
            later[own].astype(np.uint64),
            first[own].astype(np.uint64),
            np.zeros(int(own.sum()), np.float32),
        )
        pairs = Pairs.concatenate([near, same]).ordered()
        output = run.layout.duplicate_pairs(shard.key)
        distances = np.histogram(pairs.distance, 50, (0, run.settings.max_distance))[0]
        facts = {
            "rows": shard.rows,
            "pairs": len(pairs),
            "exact_copies": len(same),
            "tier": run.settings.tier,
            "max_distance": run.settings.max_distance,
            "candidates_per_row": counts.candidates / max(rows, 1),
            "compared_per_row": counts.products / max(rows, 1),
            "distances": distances.tolist(),
            "seconds": round(seconds * shard.rows / max(rows, 1), 3),
        }
        with lock(output):
            write_pairs(output, pairs)
            seal(output, inputs[shard.key], **facts)


def duplicate_groups(run: Run) -> Manifest:
    """Connected components of all pairs, and who stays."""
    layout, registry, settings = run.layout, run.registry, run.settings
    found = {
        key: run.version(layout.duplicate_pairs(key), f"duplicate_pairs {key}")
        for key in registry.keys
        if read_manifest(layout.duplicate_pairs(key))
    }
    if not found:
        raise StaleOutputError(f"{layout.root}: no pairs yet; materialise duplicate_pairs first.")
    described = {s.key: _source_state(s.metadata) for s in registry.shards}
    inputs = {
        "duplicate_pairs": digest_of(found),
        "rows": str(registry.rows),
        "metadata": digest_of(described),
        "settings": run.digest(("keep", "max_distance")),
    }

    def same_bytes(rows: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        return run.hashes(rows) == run.hashes(earlier)

    def work() -> dict[str, Any]:
        run.require_shards("clip_features", run.hashed())
        facts = group_rows(
            [layout.duplicate_pairs(key) for key in found],
            registry.rows,
            layout.duplicate_groups,
            max_distance=settings.max_distance,
            rule=settings.keep,
            metadata=Metadata.of(registry),
            copies=same_bytes if len(run.hashed()) == len(registry.shards) else None,
            former=_former(run, found),
            memory_gb=settings.memory_gb,
        )
        missing = [key for key in registry.keys if key not in found]
        return {**facts, "pair_versions": found, "shards_missing": missing}

    return _finish(layout.duplicate_groups, inputs, work)


def _former(run: Run, found: dict[str, str]) -> tuple[Path, set[Path]] | None:
    """The labels of the last run, if all that went into them still holds."""
    folder = run.layout.duplicate_groups
    manifest = read_manifest(folder)
    settings = run.digest(("keep", "max_distance"))
    if manifest is None or manifest.inputs["settings"] != settings:
        return None
    before: dict[str, str] = manifest.facts.get("pair_versions", {})
    if any(found.get(key) != version for key, version in before.items()):
        return None
    if damage(folder, manifest, run.check):
        return None
    return folder / "labels.npy", {run.layout.duplicate_pairs(key) for key in before}


def dup_bitmap(run: Run) -> Manifest:
    """One bool a row, True = drop."""
    decided = run.version(run.layout.duplicate_groups, "duplicate_groups")
    return _finish(
        run.layout.dup_bitmap,
        {"duplicate_groups": decided},
        lambda: publish_bitmap(run.layout.duplicate_groups, run.layout.dup_bitmap),
    )


def deduped_metadata(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the kept rows of metadata shards; only those whose decision changed."""
    decided = run.layout.duplicate_groups
    run.version(decided, "duplicate_groups")
    run.version(run.layout.dup_bitmap, "dup_bitmap")
    return _each(
        run,
        keys,
        run.layout.deduped_metadata,
        lambda s: {"metadata": _source_state(s.metadata), "decision": deduped_digest(decided, s)},
        lambda shard, output: publish_metadata(shard, decided, output),
    )


def drop_list(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the dropped rows of shards; only those whose decision changed."""
    decided = run.layout.duplicate_groups
    run.version(decided, "duplicate_groups")
    run.version(run.layout.dup_bitmap, "dup_bitmap")
    return _each(
        run,
        keys,
        run.layout.drop_list,
        lambda s: {"metadata": _source_state(s.metadata), "decision": drop_list_digest(decided, s)},
        lambda shard, output: publish_drop_list(shard, decided, output),
    )
