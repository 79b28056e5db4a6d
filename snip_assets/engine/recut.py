"""Another threshold or keep rule from the stored pairs: no new search.

Pairs carry their raw distance, so any smaller `max_distance` is a filter. The outputs go to
another folder with the same layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import apart, keep_rule, progress, publish, threads
from .choices import groupings
from .errors import BadInputError
from .given_up import GivenUp
from .group_table import duplicate_groups
from .groups import flatten, unite
from .keep import decide
from .layout import Layout
from .metadata import Metadata
from .pair_files import Copies, Paired, limit, number_rows, row_dtype
from .run import Run
from .settings import Settings
from .shards import Registry, load
from .slices import Slices
from .stations.base import finish, require_same, source_state
from .storage.files import MANIFEST, Manifest, digest_of, manifest_path, read_manifest, require
from .storage.folders import remove
from .storage.working_copies import discard, named


def curve(
    pair_files: Sequence[Path],
    rows: int,
    thresholds: Sequence[float],
    *,
    rule: str = "neighbours",
    metadata: Metadata | None = None,
    copies: Copies | None = None,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """What each threshold would give.

    The pairs are gathered in the system's temporary folder (13 bytes each); each threshold streams
    them five times at the most. Memory: that of `pair_files.number_rows`, then 13 bytes a row that
    is in a pair and 1 GB, for each worker.

    Parameters
    ----------
    pair_files, rows, rule, metadata, copies
        As in `keep.keep`.
    thresholds
        Raw distances, none above the one that the pairs were found with.
    workers
        Thresholds at once.

    Returns
    -------
    list of dict
        max_distance, pairs, groups (of two rows or more), dropped; by rising threshold.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-") as folder:
        largest = max(thresholds, default=None)
        paired = number_rows(pair_files, rows, Path(folder) / "pairs", largest, copies)

        def at(most: float) -> dict[str, Any]:
            counts = _count(paired, most)
            with tempfile.TemporaryDirectory(prefix="sorted-", dir=folder) as own:
                decision = decide(paired, rule, Path(own), max_distance=most, metadata=metadata)
            return {"max_distance": most, **counts, "dropped": decision.dropped_rows}

        found = threads.ordered_map(at, sorted(thresholds), workers)
        return list(progress.track(found, "thresholds", len(thresholds), "thresholds"))


def _count(paired: Paired, most: float) -> dict[str, int]:
    """Pairs within a distance, and their groups."""
    rows, pairs = len(paired.ids), 0
    labels = np.arange(rows, dtype=row_dtype(rows))
    for block, _ in paired.blocks("Pairs"):
        pairs += int(np.count_nonzero(block.distance <= limit(most)))
        unite(labels, *block, limit(most))
    flatten(labels)
    joined = np.zeros(rows, np.bool_)
    joined[labels[labels != np.arange(rows, dtype=labels.dtype)]] = True
    return {"pairs": pairs, "groups": int(np.count_nonzero(joined))}


def recut(
    root: Path,
    out: Path,
    max_distance: float,
    *,
    rule: str = "neighbours",
    duplicate_count: bool = False,
    keep_captions: bool = False,
) -> dict[str, Any]:
    """Make groups, bitmap, metadata and drop lists for a smaller threshold, in `out`.

    What is already there and made from the same is not made again.

    Parameters
    ----------
    root
        Output folder of a finished run: its registry and pairs are read.
    out
        Another folder.
    max_distance
        At most what the pairs were found with.
    rule
        As in `keep_rule`.
    duplicate_count, keep_captions
        As in `publish.deduped_metadata`.

    Returns
    -------
    dict
        The facts of `duplicate_groups`, and `max_distance`, `rule`, `notes`.

    Raises
    ------
    BadInputError
        `out` is `root` or holds another run, the threshold is too large, or the rule does not fit
        the metadata.
    StaleOutputError
        Pairs of a shard are missing or damaged.
    """
    layout, target = Layout(root), Layout(out)
    if out.resolve() == root.resolve():
        raise BadInputError(f"{out}: this holds the run itself; choose another folder.")
    apart.from_outputs(out)
    run, registry = Run(layout, Settings()), load(layout)
    copies = run.copies_by_hash()
    apart.from_sources(out, registry.source)
    keep_rule.check(keep_rule.parse(rule), registry.shards[0].metadata)
    # All recuts of a run have these in common: its first shard is never withdrawn.
    own = {"run": named(root.resolve()), "data": run.rows_version(registry.keys[0])}
    _require_own(target, own)
    inputs = _pair_versions(layout, registry, max_distance)
    inputs |= {"max_distance": str(max_distance), "rule": rule_version(rule, registry)}
    pairs = [read_manifest(layout.duplicate_pairs(key)) for key in registry.keys]
    given_up = GivenUp.of([m.facts for m in pairs if m is not None], registry, max_distance)
    inputs["copies_by_hash"] = str(copies is not None)
    inputs["given_up"] = str(given_up and given_up.max_partners)
    groups = finish(
        target.duplicate_groups,
        inputs,
        lambda: (
            own
            | duplicate_groups(
                [layout.duplicate_pairs(key) for key in registry.keys],
                registry.rows,
                target.duplicate_groups,
                max_distance=max_distance,
                rule=rule,
                metadata=Metadata.of(registry),
                copies=copies,
                given_up=given_up,
            )
        ),
        now=lambda: {**inputs, **_pair_versions(layout, registry, max_distance)},
    )
    notes = _outputs(target, registry, groups, duplicate_count, keep_captions)
    require_same(target, "duplicate_groups", groups.version)
    facts = {name: fact for name, fact in groups.facts.items() if name not in own}
    return {**facts, "max_distance": max_distance, "rule": rule, "notes": notes}


def _require_own(target: Layout, own: dict[str, str]) -> None:
    """Raise BadInputError where something else lies than an earlier recut of the same run.

    That is one in the same folder, or one of the same rows.
    """
    former = read_manifest(target.duplicate_groups)
    known = {} if former is None else {name: former.facts.get(name) for name in own}
    if target.registry.exists() or (known.get("run") and not own.items() & known.items()):
        raise BadInputError(f"{target}: holds another run; choose another folder.")


def rule_version(rule: str, registry: Registry) -> str:
    """What of a keep rule an output depends on: its text, and the metadata that it reads."""
    parsed = keep_rule.parse(rule)
    return repr((parsed, _metadata_version(registry)))


def _metadata_version(registry: Registry) -> list[tuple[str, str]]:
    return [(s.key, source_state(s.metadata)) for s in registry.shards]


def _pair_versions(layout: Layout, registry: Registry, max_distance: float) -> dict[str, str]:
    if not 0 <= max_distance < np.inf:
        raise BadInputError(f"max_distance {max_distance}: not a distance; 0 or more.")
    versions = {}
    for key in registry.keys:
        # Every byte is read below: one that has changed must not go into another result.
        manifest = require(layout.duplicate_pairs(key), f"duplicate_pairs {key}", "recent")
        if read_manifest(layout.clip_features(key)) is not None:
            require(layout.clip_features(key), f"clip_features {key}", "recent")
        found = manifest.facts.get("max_distance")
        if found is not None and max_distance > found:
            raise BadInputError(
                f"max_distance {max_distance} is larger than {found}, with which the pairs of "
                f"shard {key} were found ({layout.duplicate_pairs(key)}); choose at most {found} "
                "or search again with the larger one."
            )
        versions[f"duplicate_pairs/{key}"] = manifest.version
    return versions


def _outputs(
    target: Layout,
    registry: Registry,
    groups: Manifest,
    duplicate_count: bool,
    keep_captions: bool,
) -> list[str]:
    folder, notes = target.duplicate_groups, []
    bitmap, shards = target.dup_bitmap, registry.shards
    work: partial[dict[str, Any]] = partial(publish.dup_bitmap, folder, bitmap, shards)
    finish(bitmap, {"duplicate_groups": groups.version, "shards": digest_of(registry.keys)}, work)
    versions = _metadata_version(registry)
    options = {"duplicate_count": duplicate_count, "keep_captions": keep_captions}
    captions = Metadata.of(registry) if keep_captions else None
    decided = Slices(folder)
    for shard in progress.track(registry.shards, "Outputs", len(registry.shards)):
        # Captions come from any shard, all else from this one and its slice of the decision.
        source = repr(versions if keep_captions else versions[shard.ordinal])
        digest = decided.deduped_digest(shard, **options)
        out = target.deduped_metadata(shard.key)
        work = partial(
            publish.deduped_metadata,
            *(shard, decided, out),
            duplicate_count=duplicate_count,
            keep_captions=captions,
        )
        notes += finish(out, {"source": source, "groups": digest}, work).facts["notes"]
        digest = decided.drop_list_digest(shard)
        source = repr(versions[shard.ordinal])
        out = target.drop_list(shard.key)
        work = partial(publish.drop_list, shard, decided, out)
        notes += finish(out, {"source": source, "groups": digest}, work).facts["notes"]
    _remove_withdrawn(target, registry)
    return list(dict.fromkeys(notes))


def _remove_withdrawn(target: Layout, registry: Registry) -> None:
    """Remove what an earlier recut made of shards that are registered no more."""
    for name in ("deduped_metadata", "drop_list"):
        outputs = {*target.outputs(name, registry.keys)}
        # By their manifests: in a working copy the files need not be here.
        for manifest in [*target.output(name, registry.keys[0]).parent.glob(f"*{MANIFEST}")]:
            path = manifest.with_name(manifest.name.removesuffix(MANIFEST))
            if path not in outputs:
                discard(manifest_path(path))
                remove(path)


def rule_of(root: Path) -> str:
    """The keep rule of a run, as its groups tell."""
    groups = read_manifest(Layout(root).duplicate_groups)
    return groups.facts.get("keep", Settings().keep) if groups else Settings().keep


def thresholds(root: Path) -> list[float]:
    """A tenth, two tenths ... of the threshold that the pairs of a run were found with."""
    layout = Layout(root)
    manifests = [read_manifest(layout.duplicate_pairs(key)) for key in load(layout).keys]
    found = [m.facts["max_distance"] for m in manifests if m and "max_distance" in m.facts]
    most = min(found) if found else Settings().max_distance
    return even_steps(most, 10)[1:]


def even_steps(most: float, steps: int) -> list[float]:
    """From 0 to a threshold, which is the last one as it is: rounding may not pass it."""
    return [*(min(most, round(most * i / steps, 10)) for i in range(steps)), most]


def run_curve(
    root: Path,
    thresholds: Sequence[float],
    *,
    rule: str = "neighbours",
    memory_gb: float = 4.0,
) -> list[dict[str, Any]]:
    """`curve` of a finished run in the folder `root`; as many at once as memory allows."""
    layout = Layout(root)
    registry, copies = load(layout), Run(layout, Settings()).copies_by_hash()
    for threshold in thresholds:
        _pair_versions(layout, registry, threshold)
    files = [layout.duplicate_pairs(key) for key in registry.keys]
    return curve(
        files,
        registry.rows,
        thresholds,
        rule=rule,
        metadata=Metadata.of(registry),
        copies=copies,
        workers=groupings(registry.rows, Settings(memory_gb=memory_gb)),
    )
