"""What the user takes away."""

import dagster as dg

from snip_assets.engine import stations
from snip_assets.engine.fanout import fan_out
from snip_assets.partitions import shards
from snip_assets.report import metadata as show
from snip_assets.report import site
from snip_assets.report import site_preview as preview
from snip_assets.resources import DataSet
from snip_assets.versions import version_of

from .station import CODE_VERSION, backfill_policy, chosen, station

GROUP = "publish"


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    deps=["metadata", "kept_rows"],
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
)
def deduped_metadata(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """The kept rows of each metadata shard: all columns, same schema, same order."""
    keys = chosen(context)
    with station(context):
        manifests = fan_out(stations.deduped_metadata, data.run(), keys)
    samples = {key: data.layout.deduped_metadata(key) for key in keys}
    bitmap = version_of(data.layout.dup_bitmap)
    return show.of_shards(context, manifests, bitmap, samples=samples)


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    deps=["metadata", "dropped_rows"],
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
)
def drop_list(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """For each dropped row its url, the url of the row kept in its place, and the distance."""
    keys = chosen(context)
    with station(context):
        manifests = fan_out(stations.drop_list, data.run(), keys)
    samples = {key: data.layout.drop_list(key) for key in keys}
    groups = version_of(data.layout.duplicate_groups)
    return show.of_shards(context, manifests, groups, samples=samples)


@dg.asset(
    group_name=GROUP,
    kinds={"html"},
    deps=["duplicate_groups", "duplicate_pairs", "deduped_metadata", "drop_list"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
)
def dedup_report(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """The pages to read: numbers, curves, the most copied images, pairs to judge by eye."""
    with station(context):
        manifest = site.dedup_report(data.run())
    return preview.of_report(data.layout, manifest)
