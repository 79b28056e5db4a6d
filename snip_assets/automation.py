"""Jobs, and what starts them without a hand. Sensors and schedules are stopped by default."""

import dagster as dg
from dagster import AssetSelection as Select

from . import checks
from .engine.errors import SnipError
from .engine.layout import Layout
from .engine.shards import load
from .partitions import announce, register
from .resources import DataSet

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"

_INGEST = Select.assets("metadata", "clip_features")
_TRAIN = Select.assets("snip_model", "snip_features", "trained_index")
_DEDUP = Select.assets(
    "snip_features",
    "index_shards",
    "snip_index",
    "duplicate_pairs",
    "duplicate_groups",
    "dup_bitmap",
)
_PUBLISH = Select.assets("deduped_metadata", "drop_list", "dedup_report")

ingest = dg.define_asset_job("ingest", _INGEST, description="Read and judge new shards.")
train = dg.define_asset_job(
    "train",
    _TRAIN,
    description="Train net and index. After a change of either, all codes are made again.",
)
dedup = dg.define_asset_job("dedup", _DEDUP, description="Codes, index, pairs, groups, bitmap.")
publish = dg.define_asset_job("publish", _PUBLISH, description="Write the cleaned data set.")
arrival = dg.define_asset_job(
    "arrival", _INGEST | _TRAIN | _DEDUP | _PUBLISH, description="New shards, from end to end."
)
verify = dg.define_asset_job(
    "verify",
    Select.checks(*checks.ALL),
    description="All checks again, on what is there; nothing is made.",
)
published_dedup = dg.define_asset_job(
    "published_dedup",
    Select.assets("published_bitmap", "published_row_offsets", "published_deduped_metadata"),
    description="Download metadata shards without the rows that a published bitmap marks.",
)
JOBS = [ingest, train, dedup, publish, arrival, verify, published_dedup]


def shard_range(layout: Layout, keys: list[str]) -> dict[str, str]:
    """Tags that make one run work on these shards (neighbours in the order of registration)."""
    ordered = [s.key for s in load(layout).only(keys)]
    return {RANGE_START: ordered[0], RANGE_END: ordered[-1]}


@dg.sensor(
    name="new_shards",
    job=arrival,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Registers shards that appear in the source folders and runs them together.",
)
def new_shards(
    context: dg.SensorEvaluationContext, data: DataSet
) -> dg.SensorResult | dg.SkipReason:
    """One tick: all shards that arrived since the last one become one run."""
    try:
        register(data.layout, data.source)
        keys = announce(context.instance, data.layout)
    except SnipError as error:
        return dg.SkipReason(str(error))
    if not keys:
        return dg.SkipReason("No new shard.")
    tags = shard_range(data.layout, keys)
    request = dg.RunRequest(run_key=f"{keys[0]}...{keys[-1]}", tags=tags)
    return dg.SensorResult(run_requests=[request])


nightly = dg.ScheduleDefinition(
    name="nightly_verification",
    job=verify,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every night at three: all checks on a fresh look at the files.",
)
SENSORS = [new_shards]
SCHEDULES = [nightly]
