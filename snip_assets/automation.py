"""Jobs and schedules. What starts runs by itself is stopped by default; see also `sensors.py`."""

import datetime
from typing import Any

import dagster as dg
from dagster import AssetSelection as Select

from . import checks
from .engine.layout import Layout
from .engine.shards import load
from .engine.storage.files import read_manifest
from .partitions import RANGE_END, RANGE_START
from .resources import DataSet
from .verification import seed_of

INGEST = ("metadata", "clip_features")
TRAIN = ("snip_model", "snip_features", "trained_index")
DEDUP = (
    *("snip_features", "index_shards", "snip_index"),
    *("duplicate_pairs", "duplicate_groups", "dup_bitmap", "kept_rows", "dropped_rows"),
)
PUBLISH = ("deduped_metadata", "drop_list", "dedup_report")


def _job(name: str, assets: tuple[str, ...], description: str) -> Any:
    # Their checks go with the assets; checksums are for the schedule, not for each run.
    selection = Select.assets(*assets) - Select.checks(checks.checksums)
    return dg.define_asset_job(name, selection, description=description)


ingest = _job("ingest", INGEST, "Read and judge new shards.")
train = _job(
    "train",
    TRAIN,
    "Train net and index, when settings have changed or `again` is set. All codes and pairs are "
    "stale after it: launch `arrival` and `publish` over all shards.",
)
dedup = _job("dedup", DEDUP, "Codes, index, pairs, groups, bitmap.")
publish = _job("publish", PUBLISH, "Write the cleaned data set; what has not changed stays.")
arrival = _job("arrival", (*INGEST, *TRAIN, *DEDUP, *PUBLISH), "New shards, from end to end.")
verify = dg.define_asset_job(
    "verify",
    Select.checks(*checks.ALL),
    description="All checks but `checksums` again, on what is there; nothing is made.",
)
verify_checksums = dg.define_asset_job(
    "verify_checksums",
    Select.checks(checks.checksums),
    description="Read all outputs again and compare their checksums; nothing is made.",
)
published_dedup = dg.define_asset_job(
    "published_dedup",
    Select.assets("published_bitmap", "published_row_offsets", "published_deduped_metadata"),
    description="Download metadata shards without the rows that a published bitmap marks.",
)
JOBS = [ingest, train, dedup, publish, arrival, verify, verify_checksums, published_dedup]


def shard_range(layout: Layout, keys: list[str]) -> dict[str, str]:
    """Tags that make one run work on these shards (neighbours in the order of registration)."""
    ordered = [s.key for s in load(layout).only(keys)]
    return {RANGE_START: ordered[0], RANGE_END: ordered[-1]}


@dg.schedule(
    job=verify,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every night at three: all checks but `checksums`, on fresh random samples "
    "drawn by the date.",
)
def nightly_verification(
    context: dg.ScheduleEvaluationContext, data: DataSet
) -> dg.RunRequest | dg.SkipReason:
    """Verify, unless there is nothing yet."""
    if read_manifest(data.layout.dup_bitmap) is None:
        return dg.SkipReason("No bitmap yet: nothing to verify.")
    day = _day(context)
    config = {"resources": {"verifying": {"config": {"seed": seed_of(day)}}}}
    return dg.RunRequest(run_key=day.isoformat(), run_config=config)


@dg.schedule(
    job=verify_checksums,
    cron_schedule="0 5 * * 0",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="On Sundays at five: every output is read again and compared with its checksum.",
)
def weekly_checksums(
    context: dg.ScheduleEvaluationContext, data: DataSet
) -> dg.RunRequest | dg.SkipReason:
    """Reread all outputs, unless there are none."""
    if not data.layout.registry.exists():
        return dg.SkipReason("No shards yet: nothing to read.")
    return dg.RunRequest(run_key=_day(context).isoformat())


def _day(context: dg.ScheduleEvaluationContext) -> datetime.date:
    moment = context._scheduled_execution_time or datetime.datetime.now(datetime.timezone.utc)
    return moment.date()


SCHEDULES = [nightly_verification, weekly_checksums]
