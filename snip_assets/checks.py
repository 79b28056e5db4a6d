"""Asset checks: what must hold before the next station may go on, and how good the result is.

Checks have no partitions: one that belongs to a partitioned asset looks at the shards of its
run, or at all shards on disk when it runs on its own. Blocking ones stop what lies downstream.
"""

import shlex
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from . import verification
from .engine import arrivals, audit, index, remote_outputs, shards
from .engine.drift import measure as measure_drift
from .engine.errors import BadInputError, SnipError, without_secrets
from .engine.layout import STATIONS
from .engine.progress import track
from .engine.storage.files import damage, manifest_path, open_npy, read_manifest
from .engine.storage.parquet_source import parquet_rows
from .engine.storage.remote_files import is_remote
from .engine.storage.working_copies import here, named
from .resources import Audit, DataSet

SAMPLE_ROWS = 1_000
# Seconds without a change after which a file counts as complete.
SETTLED = 600.0
UNIT_TOLERANCE = 2e-3
# By how much precision and recall of a tier without raw features may lie below what calibration
# found in its sample.
COARSE = 0.05


def _keys(
    context: dg.AssetCheckExecutionContext, data: DataSet, output_of: Callable[[str], Path]
) -> list[str]:
    """Shards of this run that are on disk; all on disk when the run has no partitions."""
    return [key for key in _of_run(context, data) if read_manifest(output_of(key)) is not None]


def _of_run(context: dg.AssetCheckExecutionContext, data: DataSet) -> list[str]:
    """Registered shards of this run; all when the run has no partitions."""
    registered = shards.load(data.layout).keys
    run = context.op_execution_context
    if not (run.has_partition_key or run.has_partition_key_range):
        return registered
    wanted = set(run.partition_keys)
    return [key for key in registered if key in wanted]


def _result(problems: list[str], looked_at: int, **metadata: Any) -> dg.AssetCheckResult:
    """Failed, with the first problems, when there are any."""
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems[:5]) if problems else None,
        metadata={"looked_at": looked_at, "problems": len(problems), **metadata},
    )


def _bounds(data: DataSet, verifying: Audit) -> dict[str, tuple[float, float]]:
    """Where precision, recall and orphans warn, and where they fail.

    Tiers without raw features err: they warn where they err more than calibration has found, and do
    not fail.
    """
    bounds = {
        "precision": (verifying.precision_warn, verifying.precision_fail),
        "recall": (verifying.recall_warn or data.target_recall, verifying.recall_fail),
        "orphans": (verifying.orphans_warn, verifying.orphans_fail),
    }
    if data.tier == "raw":
        return bounds
    told = data.run().calibration().tiers[data.tier]
    precision, recall = (told[name] - COARSE for name in ("precision", "recall"))
    return {
        "precision": (min(bounds["precision"][0], precision), 0.0),
        "recall": (min(bounds["recall"][0], recall), 0.0),
        "orphans": (max(bounds["orphans"][0], 1 - precision), 1.0),
    }


def _some_rows(array: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers to look at: the first, the last and a random sample, ascending."""
    if len(array) <= SAMPLE_ROWS:
        return np.arange(len(array))
    drawn = np.random.default_rng(seed).choice(len(array), SAMPLE_ROWS, replace=False)
    return np.unique(np.r_[0, drawn, len(array) - 1])


@dg.asset_check(asset="clip_features", blocking=True)
@verification.judged
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
        except BadInputError as error:
            problems.append(str(error))
    return _result(problems, len(keys))


@dg.asset_check(asset="clip_features", blocking=True)
@verification.judged
def finite_and_not_zero(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> dg.AssetCheckResult:
    """No NaN, infinite or zero row in a sample of each shard's raw features."""
    # A run knows where copies of remote features lie.
    registry = data.run().registry
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
@verification.judged
def unit_length(context: dg.AssetCheckExecutionContext, data: DataSet) -> dg.AssetCheckResult:
    """SNIP features are finite and have length 1 within float16, in a sample of each shard."""
    problems, looked_at, worst = [], 0, 0.0
    for key in _keys(context, data, data.layout.snip_features):
        array = open_npy(data.layout.snip_features(key))
        rows = _some_rows(array, data.seed)
        error = np.abs(np.linalg.norm(np.asarray(array[rows], np.float32), axis=1) - 1)
        bad = ~(error <= UNIT_TOLERANCE)
        problems += [f"shard {key}: row {row}" for row in rows[bad]]
        looked_at, worst = looked_at + len(rows), float(np.max([worst, error.max(initial=0)]))
    return _result(problems, looked_at, largest_error=worst)


@dg.asset_check(asset="snip_index", blocking=True)
@verification.judged
def every_row_once(data: DataSet) -> dg.AssetCheckResult:
    """The index holds each row of the shards it was made from once, and no other."""
    registry = shards.load(data.layout)
    merged = index.SnipIndex.open(data.layout)
    times = merged.times(registry.rows)
    problems = []
    for shard in registry.shards:
        expected = int(read_manifest(data.layout.index_shards(shard.key)) is not None)
        wrong = np.flatnonzero(times[shard.start : shard.stop] != expected)
        problems += [f"shard {shard.key}: row {row}" for row in wrong[:5]]
    return _result(problems, int(merged.rows))


@dg.asset_check(asset="duplicate_pairs", blocking=True)
@verification.judged
def pair_precision(
    context: dg.AssetCheckExecutionContext, data: DataSet, verifying: Audit
) -> dg.AssetCheckResult:
    """Sampled pairs are within `max_distance` in the raw features, recomputed in float64."""
    found = audit.pair_precision(data.run(), verifying.pairs, data.seed + verifying.seed)
    severity = verification.below(found, *_bounds(data, verifying)["precision"])
    wrong = f"{found.trials - found.successes} of {found.trials} pairs are too far apart"
    return verification.result(context, found, severity, wrong)


@dg.asset_check(asset="duplicate_pairs")
@verification.judged
def drift(
    context: dg.AssetCheckExecutionContext, data: DataSet, verifying: Audit
) -> dg.AssetCheckResult:
    """Net and index fit what has come since they were trained; a warning says to train again.

    It warns when the recall of rows of later shards, with its whole confidence interval, lies
    below the target, when their codes have `code_error_warn` times the quantisation error of those
    of the training, or when there are `growth_warn` times as many rows.
    """
    run = data.run()
    found = measure_drift(run, verifying.queries, data.seed + verifying.seed)
    target = verifying.recall_warn or found.target
    why = []
    if verification.below(found.recall, target, 0.0) is not None:
        why.append(
            f"recall of rows that came after training is {found.recall.estimate:.4f} (95%: "
            f"{found.recall.low:.4f} to {found.recall.high:.4f}), below {target:.4g}: they differ "
            "from what net and index were trained on"
        )
    if found.code_error >= verifying.code_error_warn:
        why.append(
            f"codes of rows that came after training have {found.code_error:.3g} times the "
            f"quantisation error (code_error_warn {verifying.code_error_warn:g}): more candidates "
            "are false, and search is less exact"
        )
    if found.growth >= verifying.growth_warn:
        why.append(
            f"there are {found.growth:.3g} times the rows that the index was trained on "
            f"(growth_warn {verifying.growth_warn:g}): it has too few lists, and searching is slow"
        )
    source = run.registry.source
    command = ["snip", "dedup", "--train-again", "--features", source.features]
    command += ["--metadata", source.metadata, "--out", data.out]
    cure = without_secrets(f"Train again: `{shlex.join(map(str, command))}`, with your settings.")
    severity = dg.AssetCheckSeverity.WARN if why else None
    rows = {"trained_rows": found.trained_rows, "fresh_rows": found.fresh_rows}
    more = {**rows, "growth": found.growth, "code_error": found.code_error, "target": target}
    say = f"{'; '.join(why)}. {cure}"
    return verification.result(context, found.recall, severity, say, **more)


@dg.asset_check(asset="duplicate_groups", blocking=True)
@verification.judged
def query_recall(
    context: dg.AssetCheckExecutionContext, data: DataSet, verifying: Audit
) -> dg.AssetCheckResult:
    """Sampled rows find the duplicates that exact search over all raw features finds.

    A warning when the whole confidence interval lies below `recall_warn` (`target_recall` unless
    it is set), an error below `recall_fail`.
    """
    warn, fail = _bounds(data, verifying)["recall"]
    found = audit.query_recall(data.run(), verifying.queries, data.seed + verifying.seed)
    severity = verification.below(found, warn, fail)
    missed = f"{found.trials - found.successes} of {found.trials} true pairs were not found"
    return verification.result(context, found, severity, missed, target=warn)


@dg.asset_check(asset="dup_bitmap", blocking=True)
@verification.judged
def bitmap_has_all_rows(data: DataSet) -> dg.AssetCheckResult:
    """The bitmap is as long as the data set: its length is the last row offset."""
    length = len(open_npy(data.layout.dup_bitmap / "dup_bitmap.npy"))
    rows = int(open_npy(data.layout.row_offsets)[-1])
    return _result([f"{length} entries for {rows} rows"] if length != rows else [], length)


@dg.asset_check(asset="dup_bitmap", blocking=True)
@verification.judged
def no_orphans(
    context: dg.AssetCheckExecutionContext, data: DataSet, verifying: Audit
) -> dg.AssetCheckResult:
    """The kept row of each dropped row of a sample is within `max_distance` in the raw features."""
    found = audit.orphans(data.run(), verifying.dropped, data.seed + verifying.seed)
    severity = verification.above(found, *_bounds(data, verifying)["orphans"])
    lost = f"{found.successes} of {found.trials} dropped rows do not resemble their kept row"
    return verification.result(context, found, severity, lost)


@dg.asset_check(asset="deduped_metadata", blocking=True)
@verification.judged
def kept_and_dropped_add_up(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> dg.AssetCheckResult:
    """Kept rows + dropped rows = rows, for each shard, as counted in the files and the bitmap."""
    registry = shards.load(data.layout)
    drop = open_npy(data.layout.dup_bitmap / "dup_bitmap.npy")
    keys = _keys(context, data, data.layout.deduped_metadata)
    problems = []
    for shard in registry.only(keys):
        output = here(data.layout.deduped_metadata(shard.key))
        if not output.is_file():
            problems.append(f"{output}: missing; materialise deduped_metadata {shard.key} again")
            continue
        kept, dropped = parquet_rows(output), int(drop[shard.start : shard.stop].sum())
        if kept + dropped != shard.rows:
            problems.append(f"shard {shard.key}: {kept} kept + {dropped} dropped != {shard.rows}")
    return _result(problems, len(keys))


@dg.asset_check(asset="metadata")
@verification.judged
def sources_in_order(data: DataSet) -> dg.AssetCheckResult:
    """No registered shard has changed or disappeared in the source folders since it was read.

    The sensor `new_shards` reports here too, among others what it refuses to register.
    """
    known = arrivals.registered(data.layout)
    try:
        now = arrivals.listing(data.source, known, thorough=True)
    except BadInputError as error:
        return _result([str(error)], 0)
    seen = arrivals.look(now, known, arrivals.Memory())
    problems = seen.told()
    # The state of a url holds no time that could be compared with the clock.
    source, settled = data.source, time.time() - SETTLED
    remote = is_remote(source.features) or is_remote(source.metadata)
    for key in seen.growing:
        # Neither registered nor still being written: refused.
        state = now.state(key)
        if state is not None and (remote or max(state[1], state[3]) / 1e9 < settled):
            try:
                shards.inspect(data.source, key)
            except BadInputError as error:
                problems.append(str(error))
    return _result(problems, len(known))


SEALED = (*STATIONS, "dedup_report")


@dg.multi_asset_check(
    name="checksums",
    specs=[
        dg.AssetCheckSpec(
            "checksums",
            asset=asset,
            description="Every byte of the outputs is what was written (bit rot, other hands).",
        )
        for asset in SEALED
    ],
    can_subset=True,
)
def checksums(
    context: dg.AssetCheckExecutionContext, data: DataSet
) -> Iterator[dg.AssetCheckResult]:
    """Read outputs again and compare their checksums with the manifests.

    Of an output folder at a url, what is whole here and lost there is sent again.

    A backfill in the UI selects this check with its assets: each of its runs must not read what
    all the others have written. The run fails where something is damaged.
    """
    keys, damaged = _of_run(context, data), list[str]()
    for key in sorted(context.selected_asset_check_keys):
        asset = key.asset_key.to_user_string()
        places, problems, whole = data.layout.outputs(asset, keys), [], list[Path]()
        size, looked_at = 0, 0
        for path in track(places, f"checksums of {asset}", len(places), "outputs"):
            cure = f"delete {named(manifest_path(path))} and materialise it again"
            try:
                if (manifest := read_manifest(path)) is None:
                    continue
                looked_at, size = looked_at + 1, size + manifest.bytes
                found = damage(path, manifest, "full")
                problems += [f"{line}; {cure}" for line in found]
                whole += [] if found else [path]
            except (SnipError, OSError) as error:
                problems.append(str(error))
        more = _sent_again(data, whole, problems)
        if problems:
            damaged.append(asset)
        result = _result(problems, looked_at, bytes=size, **more)
        yield result._replace(asset_key=key.asset_key, check_name=key.name)
    if damaged:
        # Of a check that blocks nothing, Dagster calls the run a success.
        say = f"damaged: {', '.join(damaged)}; their checks say what to do"
        raise dg.Failure(say, allow_retries=False)


def _sent_again(data: DataSet, outputs: list[Path], problems: list[str]) -> dict[str, Any]:
    try:
        again = remote_outputs.mend(data.layout.root, outputs) if outputs else []
    except (SnipError, OSError) as error:
        problems.append(str(error))
        again = []
    return {"sent_again": dg.MetadataValue.json(again)} if again else {}


ALL = [
    sources_in_order,
    same_rows_as_metadata,
    finite_and_not_zero,
    unit_length,
    every_row_once,
    pair_precision,
    drift,
    query_recall,
    bitmap_has_all_rows,
    no_orphans,
    kept_and_dropped_add_up,
]


def keys_of(assets: Collection[str], *, sources: bool = False) -> list[dg.AssetCheckKey]:
    """Keys of the checks of some assets, without the checksums.

    Parameters
    ----------
    sources
        `sources_in_order` too, which the sensor reports itself.
    """
    some = [check for check in ALL if sources or check is not sources_in_order]
    keys = [key for check in some for key in check.check_keys]
    return [key for key in keys if key.asset_key.to_user_string() in assets]
