"""Asset checks: what must hold before the next station may go on, and how good the result is.

Checks have no partitions: one that belongs to a partitioned asset looks at the shards of its
run, or at all shards on disk when it runs on its own. Blocking ones stop what lies downstream.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from .engine import audit, index, shards
from .engine.files import open_npy, read_manifest
from .report.metadata import of_interval
from .resources import DataSet

SAMPLE_ROWS = 1_000
SAMPLE_PAIRS = 2_000
SAMPLE_DROPPED = 2_000
SAMPLE_QUERIES = 400
UNIT_TOLERANCE = 2e-3


def _keys(
    context: dg.AssetCheckExecutionContext, data: DataSet, place: Callable[[str], Path]
) -> list[str]:
    """Shards of this run that are on disk; all on disk when the run has no partitions."""
    registered = shards.load(data.layout).keys
    run = context.op_execution_context
    if run.has_partition_key or run.has_partition_key_range:
        wanted = set(run.partition_keys)
        registered = [key for key in registered if key in wanted]
    return [key for key in registered if read_manifest(place(key)) is not None]


def _result(problems: list[str], looked_at: int, **metadata: Any) -> dg.AssetCheckResult:
    """Failed, with the first problems, when there are any."""
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems[:5]) if problems else None,
        metadata={"looked_at": looked_at, "problems": len(problems), **metadata},
    )


def _some_rows(array: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers to look at: the first, the last and a random sample, ascending."""
    if len(array) <= SAMPLE_ROWS:
        return np.arange(len(array))
    drawn = np.random.default_rng(seed).choice(len(array), SAMPLE_ROWS, replace=False)
    return np.unique(np.r_[0, drawn, len(array) - 1])


@dg.asset_check(asset="clip_features", blocking=True)
def same_rows_as_metadata(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> dg.AssetCheckResult:
    """Features and metadata of a shard have the same number of rows, and have not changed."""
    registry = shards.load(data.layout)
    keys = _keys(context, data, data.layout.clip_features)
    problems = []
    for key in keys:
        try:
            shards.changed(registry[key])
        except shards.BadInputError as error:
            problems.append(str(error))
    return _result(problems, len(keys))


@dg.asset_check(asset="clip_features", blocking=True)
def finite_and_not_zero(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> dg.AssetCheckResult:
    """No NaN, infinite or zero row in a sample of each shard's raw features."""
    registry = shards.load(data.layout)
    problems, looked_at = [], 0
    for key in _keys(context, data, data.layout.clip_features):
        array = open_npy(registry[key].features)
        rows = _some_rows(array, data.seed)
        block = np.asarray(array[rows], np.float32)
        bad = ~np.isfinite(block).all(1) | ~block.any(1)
        problems += [f"{registry[key].features}: row {row}" for row in rows[bad]]
        looked_at += len(rows)
    return _result(problems, looked_at)


@dg.asset_check(asset="snip_features", blocking=True)
def unit_length(context: dg.AssetCheckExecutionContext, data: DataSet) -> dg.AssetCheckResult:
    """SNIP features are finite and have length 1 within float16, in a sample of each shard."""
    problems, looked_at, worst = [], 0, 0.0
    for key in _keys(context, data, data.layout.snip_features):
        array = open_npy(data.layout.snip_features(key))
        rows = _some_rows(array, data.seed)
        error = np.abs(np.linalg.norm(np.asarray(array[rows], np.float32), axis=1) - 1)
        bad = ~(error <= UNIT_TOLERANCE)
        problems += [f"shard {key}: row {row}" for row in rows[bad]]
        looked_at, worst = looked_at + len(rows), max(worst, float(error.max(initial=0)))
    return _result(problems, looked_at, largest_error=worst)


@dg.asset_check(asset="snip_index", blocking=True)
def every_row_once(data: DataSet) -> dg.AssetCheckResult:
    """The index holds each row of the shards it was made from once, and no other."""
    registry = shards.load(data.layout)
    merged = index.SnipIndex.open(data.layout)
    times = np.zeros(registry.rows, np.uint8)
    for number in range(len(merged.list_sizes)):
        rows, _ = merged.read_list(number)
        times[rows.astype(np.int64)] += 1
    problems = []
    for shard in registry.shards:
        expected = int(read_manifest(data.layout.index_shard(shard.key)) is not None)
        wrong = np.flatnonzero(times[shard.start : shard.stop] != expected)
        problems += [f"shard {shard.key}: row {row}" for row in wrong[:5]]
    return _result(problems, int(merged.rows))


@dg.asset_check(asset="duplicate_pairs", blocking=True)
def pair_precision(data: DataSet) -> dg.AssetCheckResult:
    """Sampled pairs are within `max_distance` in the raw features, recomputed in float64."""
    found = audit.pair_precision(data.run(), SAMPLE_PAIRS, data.seed)
    wrong = found.trials - found.successes
    return _result(
        [f"{wrong} of {found.trials} pairs are too far apart"] if wrong else [],
        found.trials,
        **of_interval(found),
    )


@dg.asset_check(asset="duplicate_groups")
def query_recall(data: DataSet) -> dg.AssetCheckResult:
    """Sampled rows find the duplicates that exact search over all raw features finds.

    A warning when the whole confidence interval lies below `target_recall`.
    """
    found = audit.query_recall(data.run(), SAMPLE_QUERIES, data.seed)
    return dg.AssetCheckResult(
        passed=found.trials == 0 or found.high >= data.target_recall,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"target": data.target_recall, **of_interval(found)},
    )


@dg.asset_check(asset="dup_bitmap", blocking=True)
def bitmap_has_all_rows(data: DataSet) -> dg.AssetCheckResult:
    """The bitmap is as long as the data set: its length is the last row offset."""
    length = len(open_npy(data.layout.dup_bitmap / "dup_bitmap.npy"))
    rows = int(open_npy(data.layout.row_offsets)[-1])
    return _result([f"{length} entries for {rows} rows"] if length != rows else [], length)


@dg.asset_check(asset="dup_bitmap", blocking=True)
def no_orphans(data: DataSet) -> dg.AssetCheckResult:
    """Each dropped row of a sample has a kept row within `max_distance` in the raw features."""
    found = audit.orphans(data.run(), SAMPLE_DROPPED, data.seed)
    return _result(
        [f"{found.successes} of {found.trials} dropped rows resemble no kept row"]
        if found.successes
        else [],
        found.trials,
        **of_interval(found),
    )


@dg.asset_check(asset="deduped_metadata", blocking=True)
def kept_and_dropped_add_up(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> dg.AssetCheckResult:
    """Kept rows + dropped rows = rows, for each shard, as counted in the files and the bitmap."""
    registry = shards.load(data.layout)
    drop = open_npy(data.layout.dup_bitmap / "dup_bitmap.npy")
    keys = _keys(context, data, data.layout.deduped_metadata)
    problems = []
    for shard in registry.only(keys):
        kept = shards.parquet_rows(data.layout.deduped_metadata(shard.key))
        dropped = int(drop[shard.start : shard.stop].sum())
        if kept + dropped != shard.rows:
            problems.append(f"shard {shard.key}: {kept} kept + {dropped} dropped != {shard.rows}")
    return _result(problems, len(keys))


ALL = [
    same_rows_as_metadata,
    finite_and_not_zero,
    unit_length,
    every_row_once,
    pair_precision,
    query_recall,
    bitmap_has_all_rows,
    no_orphans,
    kept_and_dropped_add_up,
]
