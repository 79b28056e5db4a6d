"""Stations of the index: trained_index, index_shards, snip_index."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from snip_assets.engine import calibrate, calibration, choices, index, shards, threads
from snip_assets.engine.code_distance import CodeErrors
from snip_assets.engine.cost import measured
from snip_assets.engine.encode import Encoder, encode_shard
from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.features import Features, as_float32, normalised
from snip_assets.engine.known_pairs import known_pairs
from snip_assets.engine.run import INDEX_SETTINGS, Run
from snip_assets.engine.shards import Shard
from snip_assets.engine.storage.files import (
    Manifest,
    atomic_path,
    current,
    digest_of,
    read_manifest,
    save_npy,
    seal,
    seal_parts,
    write_json,
)
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.trained import TrainedIndex

from .base import Inputs, each, finish, upstream_inputs
from .features import unchanged

HELD_OUT, FEWEST_TO_HOLD_OUT = 0.2, 512


def index_inputs(run: Run) -> dict[str, str]:
    """What the index is trained with; not the shards, on purpose."""
    return {"snip_model": run.version("snip_model"), "settings": run.digest(INDEX_SETTINGS)}


def encoded_inputs(run: Run) -> Inputs:
    """What the codes of a shard are made from."""
    return upstream_inputs(run, "trained_index", "snip_features")


def trained_index(run: Run, *, again: bool = False) -> Manifest:
    """Train the inverted lists and the codec, and calibrate; kept when shards arrive.

    Parameters
    ----------
    again
        Train now, also when net, settings and code are the same.
    """
    work = partial(_train_index, run)
    now = partial(index_inputs, run)
    return finish(run.layout.trained_index, now(), work, again=again, now=now)


def _train_index(run: Run) -> dict[str, Any]:
    registry, settings = run.registry, run.settings
    lists = choices.lists(registry.rows, settings)
    codec = choices.codec(registry.rows, settings)
    ready = run.hashed()
    if not ready:
        raise StaleOutputError(
            f"{run.layout}: no shard is read yet; materialise clip_features (`snip check`) "
            "and snip_features (`snip compress`) first."
        )
    run.require_shards("clip_features", ready)
    run.require_shards("snip_features", ready)
    with unchanged(run, [s.key for s in ready]):
        return _trained(run, ready, lists, codec)


def _trained(run: Run, ready: list[Shard], lists: int, codec: str) -> dict[str, Any]:
    registry, settings = run.registry, run.settings
    # Copies count as often as they occur: so the codes are finest where most pairs are.
    rows = _drawn(run, choices.index_rows(registry.rows, lists))
    # A fifth is held out: the codec fits the rows it was trained on better than any other.
    held_out = np.random.default_rng(settings.seed).random(len(rows)) < HELD_OUT
    held_out &= len(rows) > FEWEST_TO_HOLD_OUT
    rows = rows[~held_out]
    snip = shards.snip_features(run.layout, registry)
    trained = TrainedIndex.train(
        as_float32(snip.take(rows)), lists, codec, settings.seed, settings.workers
    )
    most = calibration.budget(registry.rows, registry.dim)
    drawn = _drawn(run, most)
    chosen = _first_copies(run, drawn)
    whole = most >= sum(shard.rows for shard in ready)
    known = None if whole else known_pairs(run, chosen)
    raw = _unit_rows(shards.raw_features(registry), chosen) if known is None else None
    fresh, copies = ~np.isin(chosen, rows), len(drawn) - len(chosen)
    sample = calibration.Sample(raw, as_float32(snip.take(chosen)), fresh, registry.rows, copies)
    expected = CodeErrors.learn(trained, sample.snip, settings.workers)
    with threads.one_thread():
        found, axes = calibrate.calibrate(trained, sample, settings, known, expected)
    with atomic_path(run.layout.trained_index) as folder:
        folder.mkdir(parents=True)
        trained.save(folder / "trained.index")
        write_json(folder / "calibration.json", found.to_json())
        save_npy(folder / "axes.npy", axes)
        save_npy(folder / "code_errors.npy", expected.table)
    return {
        "lists": trained.lists,
        "codec": codec,
        "code_bytes": trained.codec.size,
        "rows_read": len(rows),
        "shards_seen": {s.key: run.rows_version(s.key) for s in ready},
        **found.to_json(),
    }


def _unit_rows(features: Features, rows: np.ndarray) -> np.ndarray:
    """Rows by row id, float32, of unit length; never held in two precisions as a whole."""
    out = np.empty((len(rows), features.shard(0).shape[1]), np.float32)
    for start in range(0, len(rows), 8192):
        part = as_float32(features.take(rows[start : start + 8192]))
        out[start : start + 8192] = normalised(part)
    return out


def _drawn(run: Run, most: int) -> np.ndarray:
    """Row ids of a random sample, ascending."""
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
    return rows + ahead[np.searchsorted(ends, rows, "right")]


def _first_copies(run: Run, rows: np.ndarray) -> np.ndarray:
    """The rows without those that are exact copies of an earlier one of them."""
    first = np.unique(run.hashes(rows), return_index=True)[1]
    return rows[np.sort(first)]


def index_shards(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Assign and encode shards."""
    inputs, chosen = encoded_inputs(run), run.calibration()

    @cache
    def encoder() -> Encoder:
        return Encoder(run.trained(), run.axes(), chosen.radius, chosen.probes)

    def work(shard: Shard, output: Path) -> dict[str, Any]:
        source = run.layout.snip_features(shard.key)
        return encode_shard(encoder(), source, output, run.settings.workers)

    return each(run, keys, run.layout.index_shards, inputs, work)


def snip_index(run: Run) -> Manifest:
    """Merge the index shards that are there."""
    layout = run.layout
    present = run.indexed()
    if not present:
        raise StaleOutputError(f"{layout}: no index shards; materialise index_shards first.")
    run.require_shards("index_shards", run.registry.only([s.key for s in present]))
    inputs = {
        "trained_index": run.version("trained_index"),
        "index_shards": digest_of({s.key: s.merged for s in present}),
    }
    with lock(layout.snip_index):
        if (manifest := current(layout.snip_index, inputs)) is not None:
            return manifest
        return _merge_index(run, present, inputs)


def _merge_index(run: Run, present: list[index.IndexedShard], inputs: dict[str, str]) -> Manifest:
    layout = run.layout
    with measured() as cost:
        segments = index.update(layout.snip_index, present, run.registry.rows, run.check)
        seal(layout.snip_index / "segments.json", inputs)
        sizes = index.SnipIndex.open(layout).list_sizes
    rows = int(sizes.sum())
    parts = [layout.snip_index / name for name in ("segments.json", *(s["name"] for s in segments))]
    bytes_all = sum(m.bytes for p in parts if (m := read_manifest(p)))
    return seal_parts(
        layout.snip_index,
        inputs,
        parts,
        rows=rows,
        segments=len(segments),
        bytes_per_row=bytes_all / max(1, rows),
        list_sizes=_histogram(sizes),
        imbalance=float(len(sizes) * (sizes.astype(float) ** 2).sum() / max(1, rows) ** 2),
        shards_missing=[k for k in run.registry.keys if k not in {s.key for s in present}],
        **cost.facts,
    )


def _histogram(values: np.ndarray) -> list[int]:
    """At most 4,096 values, sorted: enough to draw a histogram."""
    ordered = np.sort(values)
    if len(ordered) > 4096:
        ordered = ordered[np.linspace(0, len(ordered) - 1, 4096).astype(int)]
    return ordered.tolist()
