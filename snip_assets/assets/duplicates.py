"""From candidates to pairs, from pairs to groups, and who stays."""

import dagster as dg

from snip_assets.engine import stations
from snip_assets.engine.fanout import fan_out
from snip_assets.partitions import shards
from snip_assets.report import metadata as show
from snip_assets.report import plots
from snip_assets.resources import DataSet

from .station import CODE_VERSION, HEAVY, backfill_policy, chosen, station

GROUP = "duplicates"


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    deps=["snip_index", "snip_features", "clip_features"],
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
    pool=HEAVY,
)
def duplicate_pairs(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """Each row of a shard with its earlier duplicates: row, earlier_row, raw distance.

    Candidates from the index, verified with raw features; each pair once; no limit on the size
    of a group. Rows are compared with earlier rows only, so data that arrives later changes
    nothing here.
    """
    keys = chosen(context.partition_keys)
    with station(context):
        manifests = fan_out(stations.duplicate_pairs, data.run(), keys)
    samples = {key: data.layout.duplicate_pairs(key) for key in keys}
    trained = show.version_of(data.layout.trained_index)
    made_with = (trained, str(data.max_distance), str(data.max_partners))
    return show.of_shards(context, manifests, *made_with, samples=samples)


@dg.asset(
    group_name=GROUP,
    kinds={"numpy", "parquet"},
    deps=["duplicate_pairs"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
    pool=HEAVY,
)
def duplicate_groups(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """Connected components of the pairs, the kept rows, and the kept row of each dropped one."""
    with station(context):
        run = data.run()
        manifest = stations.duplicate_groups(run)
    more = show.missing(run, data.layout.duplicate_pairs)
    groups = data.layout.duplicate_groups / "groups.parquet"
    sizes = dg.MetadataValue.md(plots.group_sizes(groups))
    return show.of_whole(manifest, **more, group_sizes=sizes, sample_rows=show.sample_rows(groups))


@dg.asset(
    group_name=GROUP,
    kinds={"numpy"},
    deps=["duplicate_groups"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
)
def dup_bitmap(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """One bool a row, True = drop: the form of the SNIP authors' `is_dup_*.npy`."""
    with station(context):
        manifest = stations.dup_bitmap(data.run())
    return show.of_whole(manifest)
