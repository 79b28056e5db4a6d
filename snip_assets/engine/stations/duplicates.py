"""Stations of duplicates: duplicate_pairs, duplicate_groups, dup_bitmap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from snip_assets.engine import choices, index, threads
from snip_assets.engine.changed import Former
from snip_assets.engine.cost import measured
from snip_assets.engine.errors import StaleOutputError, made_again
from snip_assets.engine.given_up import GivenUp
from snip_assets.engine.group_table import duplicate_groups as group_rows
from snip_assets.engine.listed_pairs import Counts
from snip_assets.engine.metadata import Metadata
from snip_assets.engine.pairs import few_pairs, find_pairs, write_pairs
from snip_assets.engine.publish import dup_bitmap as publish_bitmap
from snip_assets.engine.run import PAIR_SETTINGS, Run
from snip_assets.engine.shards import Shard
from snip_assets.engine.slices import Slices
from snip_assets.engine.storage.files import (
    CODE_VERSION,
    CheckLevel,
    Manifest,
    current,
    damage,
    digest_of,
    open_npy,
    read_manifest,
    seal,
)
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.remote_files import is_remote
from snip_assets.engine.verify import Pairs

from .base import finish, require_same, source_state
from .features import unchanged

# Of so many rows, the first of a data set, each pair is looked at.
FEW_ROWS = 512


def duplicate_pairs(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Join shards with all earlier rows; what is not current is done together, by memory."""
    layout, wanted = run.layout, run.registry.only(keys)
    inputs = pair_inputs(run)
    todo = [s for s in wanted if current(layout.duplicate_pairs(s.key), inputs[s.key]) is None]
    if todo:
        _require_merged(run, todo)
    most = choices.join_rows(run.settings)
    for batch in choices.batches(todo, [s.rows for s in todo], most):
        _join_batch(run, batch, inputs)
    found = {s.key: current(layout.duplicate_pairs(s.key), inputs[s.key]) for s in wanted}
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def _require_merged(run: Run, todo: list[Shard]) -> None:
    """Raise unless the index holds the codes of these shards and of all before as they are."""
    merged: dict[str, str] = {}
    for segment in index.read_segments(run.layout.snip_index):
        merged |= segment["versions"]
    last = max(s.ordinal for s in todo)
    before = {s.key for s in run.registry.shards if s.ordinal <= last}
    for shard in run.indexed():
        if shard.key in before and merged.get(shard.key) != shard.merged:
            raise StaleOutputError(
                f"shard {shard.key}: snip_index does not hold its codes as they are now; "
                "materialise snip_index."
            )
    if absent := [s.key for s in todo if s.key not in merged]:
        raise StaleOutputError(
            f"shard {absent[0]}: not in snip_index yet; materialise index_shards for it, then "
            "snip_index."
        )


def pair_inputs(run: Run) -> dict[str, dict[str, str]]:
    """What the pairs of each shard are made from: the shards up to itself, never later ones."""
    trained, settings = run.version("trained_index"), run.digest(PAIR_SETTINGS)
    return {
        key: {"trained_index": trained, "rows": chain, "settings": settings}
        for key, chain in _chains(run).items()
    }


def _chains(run: Run) -> dict[str, str]:
    """Key -> digest of the codes of its shard and of all earlier ones, and of their raw rows."""
    codes = {s.key: s.version for s in run.indexed()}
    chain, result = "", {}
    for key in run.registry.keys:
        raw = read_manifest(run.layout.clip_features(key))
        chain = digest_of([chain, key, codes.get(key), raw and raw.version])
        result[key] = chain
    return result


def unpaired(run: Run) -> list[str]:
    """Shards without pairs, or whose pairs lack rows of an earlier shard that came since."""

    def paired(key: str, chain: str) -> bool:
        manifest = read_manifest(run.layout.duplicate_pairs(key))
        return manifest is not None and manifest.inputs.get("rows") == chain

    return [key for key, chain in _chains(run).items() if not paired(key, chain)]


def undecided(run: Run) -> list[str]:
    """Shards whose pairs the bitmap was not made from; the last where a bitmap alone is missing."""
    layout = run.layout
    found = _pair_versions(run)
    groups, bitmap = read_manifest(layout.duplicate_groups), read_manifest(layout.dup_bitmap)
    known = groups.facts["pair_versions"] if groups else {}
    if fresh := [key for key, version in found.items() if known.get(key) != version]:
        return fresh
    current_one = groups and bitmap and bitmap.inputs.get("duplicate_groups") == groups.version
    return [] if current_one else list(found)[-1:]


def _require_earlier(run: Run, last: int) -> None:
    """Check what the join of shards up to ordinal `last` reads, before it reads it."""
    earlier = [s for s in run.hashed() if s.ordinal <= last]
    run.version("snip_index")
    run.require_shards("clip_features", earlier)
    run.require_shards("index_shards", earlier)
    if run.settings.tier != "codes":
        run.require_shards("snip_features", earlier)


def _paired(run: Run, last: int, inputs: dict[str, dict[str, str]]) -> list[str]:
    """Shards up to ordinal `last` whose pairs, and so their exact copies, are known."""
    keys = [s.key for s in run.hashed() if s.ordinal <= last]
    known = [key for key in keys if current(run.layout.duplicate_pairs(key), inputs[key])]
    run.require_shards("duplicate_pairs", run.registry.only(known))
    return known


def _join_batch(run: Run, batch: list[Shard], inputs: dict[str, dict[str, str]]) -> None:
    last = batch[-1].ordinal
    with measured() as cost:
        _require_earlier(run, last)
        is_copy, (later, first) = _copies(run, batch, _paired(run, last, inputs))
        raw = [s.key for s in run.hashed() if s.ordinal <= last]
        try:
            with unchanged(run, raw if run.settings.tier == "raw" else []):
                found, counts = _near(run, batch, is_copy)
        except Exception:
            # Lists of one index do not fit queries of another, of which numpy tells shapes alone.
            _require_same_index(run, batch, inputs)
            raise
    _require_same_index(run, batch, inputs)
    rows = max(1, sum(s.rows for s in batch))
    common = {
        "tier": run.settings.tier,
        "joined_together": len(batch),
        "max_distance": run.settings.max_distance,
        "max_partners": run.settings.max_partners,
        "candidates_per_row": counts.candidates / rows,
        "compared_per_row": counts.products / rows,
        **cost.facts,
    }

    def write(some: tuple[Shard, Pairs]) -> None:
        shard, near = some
        own = (later >= shard.start) & (later < shard.stop)
        seconds = round(cost.seconds * shard.rows / rows, 3)
        facts = {**common, "rows": shard.rows, "seconds": seconds}
        _write(run, shard, near, (later[own], first[own]), inputs[shard.key], facts)

    shards = zip(batch, found, strict=True)
    for _ in threads.ordered_map(write, shards, run.settings.workers):
        pass


def _near(run: Run, batch: list[Shard], is_copy: np.ndarray) -> tuple[list[Pairs], Counts]:
    """Near pairs of each shard; of the first rows of all, each pair is looked at."""
    join, most, counts = run.join(is_copy), choices.query_rows(run.settings), Counts()
    # Where codes alone decide, the join has measured the candidates.
    few = [s for s in batch if s.stop <= FEW_ROWS and run.settings.tier != "codes"]
    found: list[Pairs] = []
    for shard in few:
        own = [np.arange(s.start, s.start + s.rows) for s in run.indexed() if s.start < shard.stop]
        rows = np.concatenate([np.empty(0, np.int64), *own])
        pairs, looked_at = few_pairs(join, rows, shard.start)
        found.append(pairs)
        counts.add(Counts(looked_at, looked_at))
    if few == batch:
        return found, counts
    queries = [run.query_shard(s) for s in batch[len(few) :]]
    more, joined = find_pairs(join, queries, run.settings.workers, most)
    counts.add(joined)
    return [*found, *more], counts


def _copies(
    run: Run, batch: list[Shard], known: list[str]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Later exact copies, bool[N], and those of a batch of shards with the first of each.

    Of shards that others work on, whose pairs are not known yet, the marks alone are held.
    """
    is_copy, own = np.zeros(run.registry.rows, bool), [np.empty((2, 0), np.int64)]
    ordinals, unknown = [s.ordinal for s in batch], set(run.registry.keys).difference(known)
    with ThreadPoolExecutor(1) as pool:
        marking = pool.submit(run.mark_copies, known, is_copy)
        for found in run.exact_copies(batch[-1].ordinal, unknown):
            is_copy[found[0]] = True
            place = np.searchsorted(run.registry.offsets, found[0], "right") - 1
            inside = np.isin(place, ordinals)
            own.append(np.stack(found)[:, inside])
        marking.result()
    later, first = np.concatenate(own, axis=1)
    return is_copy, (later, first)


def _require_same_index(run: Run, batch: list[Shard], inputs: dict[str, dict[str, str]]) -> None:
    """Raise BadInputError if what these shards are joined with was made again since."""
    now = pair_inputs(run)
    if others := [s.key for s in batch if now[s.key] != inputs[s.key]]:
        raise made_again(f"shard {others[0]}: the index", "searched")


def _write(
    run: Run,
    shard: Shard,
    near: Pairs,
    copies: tuple[np.ndarray, np.ndarray],
    inputs: dict[str, str],
    facts: dict[str, Any],
) -> None:
    """Write the pairs of a shard: near ones, and later exact copies with the first of each."""
    later, first = (rows.astype(np.uint64) for rows in copies)
    same = Pairs(later, first, np.zeros(len(later), np.float32))
    pairs = Pairs.concatenate([near, same]).ordered()
    output, most = run.layout.duplicate_pairs(shard.key), run.settings.max_distance
    distances = np.histogram(pairs.distance, 50, (0, most))[0].tolist()
    facts = {**facts, "pairs": len(pairs), "exact_copies": len(same), "distances": distances}
    with lock(output):
        write_pairs(output, pairs)
        seal(output, inputs, **facts)


def duplicate_groups(run: Run) -> Manifest:
    """Connected components of all pairs, and who stays."""
    layout, registry, settings = run.layout, run.registry, run.settings
    found = {key: run.version("duplicate_pairs", key) for key in _pair_versions(run)}
    if not found:
        raise StaleOutputError(f"{layout}: no pairs yet; materialise duplicate_pairs first.")
    _require_wide_enough(run, list(found))
    described = {s.key: source_state(s.metadata) for s in registry.shards}
    given_up = _given_up(run, list(found))
    made_by = _made_by(run, given_up)
    inputs = {
        "duplicate_pairs": digest_of(found),
        "rows": str(registry.rows),
        "metadata": digest_of(described),
        **made_by,
    }

    def work() -> dict[str, Any]:
        copies = run.copies_by_hash()
        # What went into the decision, for the next run to compare.
        seen: dict[str, Any] = {"pair_versions": found, "metadata_states": described}
        seen["copies_by_hash"] = copies is not None
        run.require_shards("clip_features", run.hashed())
        facts = group_rows(
            [layout.duplicate_pairs(key) for key in found],
            registry.rows,
            layout.duplicate_groups,
            max_distance=settings.max_distance,
            rule=settings.keep,
            metadata=Metadata.of(registry),
            copies=copies,
            former=_former(run, seen, made_by),
            given_up=given_up,
        )
        missing = [key for key in registry.keys if key not in found]
        return {**facts, **seen, "keep": settings.keep, "shards_missing": missing}

    def now() -> dict[str, str]:
        pairs = {**inputs, "duplicate_pairs": digest_of(_pair_versions(run))}
        if is_remote(registry.source.metadata):
            # A request a shard, and a changed object is another object to who reads it.
            return pairs
        states = {s.key: source_state(s.metadata) for s in registry.shards}
        return {**pairs, "metadata": digest_of(states)}

    return finish(layout.duplicate_groups, inputs, work, now=now)


def _pair_versions(run: Run) -> dict[str, str]:
    """Key -> version of the pairs that there are."""
    found = {key: read_manifest(run.layout.duplicate_pairs(key)) for key in run.registry.keys}
    return {key: manifest.version for key, manifest in found.items() if manifest is not None}


def _given_up(run: Run, keys: list[str]) -> GivenUp | None:
    """What measures pairs that are not stored: by what they were made with, not by the settings."""
    manifests = (read_manifest(run.layout.duplicate_pairs(key)) for key in keys)
    made = [manifest.facts for manifest in manifests if manifest is not None]
    return GivenUp.of(made, run.registry, run.settings.max_distance)


def _made_by(run: Run, given_up: GivenUp | None) -> dict[str, str]:
    """What decides about groups, beside pairs and metadata."""
    return {
        "settings": run.digest(("keep", "max_distance")),
        "given_up": str(given_up and given_up.max_partners),
    }


def _require_wide_enough(run: Run, keys: list[str]) -> None:
    """Raise if pairs were searched within a smaller distance than is asked for."""
    for key in keys:
        manifest = read_manifest(run.layout.duplicate_pairs(key))
        searched = manifest.facts.get("max_distance") if manifest else None
        if searched is not None and searched < run.settings.max_distance:
            raise StaleOutputError(
                f"duplicate_pairs {key} has pairs up to {searched:g} only, as it was made with "
                f"that max_distance, not {run.settings.max_distance:g}. Run `snip dedup`, or the "
                "job `arrival` over all shards, or choose a max_distance of that at most."
            )


def _former(run: Run, seen: dict[str, Any], made_by: dict[str, str]) -> Former | None:
    """The last run, if all that went into its labels still holds, and what else of it does."""
    folder = run.layout.duplicate_groups
    manifest = read_manifest(folder)
    made_by = {**made_by, "code": CODE_VERSION}
    if manifest is None or not made_by.items() <= manifest.inputs.items():
        return None

    def holds(name: str) -> bool:
        # A fact that is absent does not hold.
        before: dict[str, str] = manifest.facts.get(name, {"": ""})
        return all(seen[name].get(key) == version for key, version in before.items())

    # By checksum, whatever the setting: a run that was killed may have left newer files.
    level: CheckLevel = "full" if run.check == "full" else "recent"
    if not holds("pair_versions") or damage(folder, manifest, level):
        return None
    same_copies = manifest.facts.get("copies_by_hash") == seen["copies_by_hash"]
    files = {run.layout.duplicate_pairs(key) for key in manifest.facts.get("pair_versions", {})}
    return Former(folder, files, same_copies and holds("metadata_states"))


def dup_bitmap(run: Run) -> Manifest:
    """One bool a row, True = drop; its facts tell version and rows of each shard's slice.

    `kept_rows` changes when other rows of a shard stay, `dropped_rows` when other ones go or
    something else explains them: what the outputs of the shard depend on.
    """
    decided = run.layout.duplicate_groups
    version = run.version("duplicate_groups")
    rows = len(open_npy(decided / "kept_row.npy"))
    shards = [s for s in run.registry.shards if s.stop <= rows]

    def work() -> dict[str, Any]:
        slices = Slices(decided)
        facts = publish_bitmap(decided, run.layout.dup_bitmap, shards)
        for name, digest in (
            ("kept_rows", slices.deduped_digest),
            ("dropped_rows", slices.drop_list_digest),
        ):
            found = threads.ordered_map(digest, shards, run.settings.workers)
            facts[name] = dict(zip([s.key for s in shards], found, strict=True))
        kept = {s.key: int(np.count_nonzero(slices.of(s))) for s in shards}
        facts["kept_rows_count"] = kept
        facts["dropped_rows_count"] = {s.key: s.rows - kept[s.key] for s in shards}
        require_same(run.layout, "duplicate_groups", version)
        return facts

    inputs = {"duplicate_groups": version, "shards": digest_of([s.key for s in shards])}
    return finish(run.layout.dup_bitmap, inputs, work)
