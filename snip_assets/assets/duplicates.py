"""From candidates to pairs, from pairs to groups, and who stays."""

from collections.abc import Iterator

import dagster as dg

from snip_assets import versions
from snip_assets.engine import stations
from snip_assets.engine.fanout import fan_out
from snip_assets.engine.storage.files import require
from snip_assets.partitions import shards
from snip_assets.record_batch import log_together
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
    keys = chosen(context)
    with station(context):
        manifests = fan_out(stations.duplicate_pairs, data.run(), keys)
    samples = {key: data.layout.duplicate_pairs(key) for key in keys}
    made = versions.made_with(data)["duplicate_pairs"]
    return show.of_shards(context, manifests, *made, samples=samples)


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
    return show.of_whole(
        context, manifest, **more, group_sizes=sizes, sample_rows=show.sample_rows(groups)
    )


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
    return show.of_whole(context, manifest)


def _slice(name: str, description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        description=description,
        group_name=GROUP,
        kinds={"numpy"},
        # A backfill of some shards reaches what has shards through what has them too: without the
        # pairs it would leave the decision out, and publish before it.
        deps=["dup_bitmap", "duplicate_pairs"],
        partitions_def=shards,
        code_version=CODE_VERSION,
    )


@dg.multi_asset(
    specs=[
        _slice(
            "kept_rows",
            "Which rows of a shard stay: its slice of the bitmap. A new version only where that "
            "changed, so only those shards of `deduped_metadata` become stale.",
        ),
        _slice(
            "dropped_rows",
            "Which rows of a shard go, and the kept row, distance and group that explain each. A "
            "new version only where that changed, so only those shards of `drop_list` become "
            "stale.",
        ),
    ],
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def decisions(
    context: dg.AssetExecutionContext, data: DataSet
) -> Iterator[dg.MaterializeResult[None]]:
    """Record what was decided about each shard, whichever shards the run is about.

    A decision is about all shards at once, and Dagster gives one version to all partitions of a
    run: so each shard gets a record with the version of its own slice. Where the others have one
    of this very bitmap, only the shards of the run get another. No file is written.
    """
    chosen(context)
    with station(context):
        manifest = require(data.layout.dup_bitmap, "dup_bitmap")
    own = context.partition_keys
    for asset in sorted(context.selected_asset_keys):
        wanted = versions.unrecorded_slices(context.instance, asset, manifest, set(own))
        yield dg.MaterializeResult(asset_key=asset, data_version=dg.DataVersion(manifest.version))
        # Dagster has just recorded the shards of this run, with tags that hold for all shards.
        counts = manifest.facts.get(f"{asset.to_user_string()}_count", {})
        shown = {key: {show.SHARD_ROWS: count} for key, count in counts.items()}
        records = versions.slice_records(context.instance, asset, wanted, own[0], shown)
        log_together(context, records)
