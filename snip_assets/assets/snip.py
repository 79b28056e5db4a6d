"""SNIP: a small net that makes 128 numbers of a CLIP feature and keeps near neighbours near."""

import dagster as dg

from snip_assets.engine import stations
from snip_assets.engine.fanout import fan_out
from snip_assets.partitions import shards
from snip_assets.report import metadata as show
from snip_assets.resources import DataSet
from snip_assets.versions import made_with

from .station import CODE_VERSION, HEAVY, Training, backfill_policy, chosen, station

GROUP = "snip"


@dg.asset(
    group_name=GROUP,
    kinds={"pytorch"},
    deps=["clip_features"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
    pool=HEAVY,
)
def snip_model(
    context: dg.AssetExecutionContext, data: DataSet, config: Training
) -> dg.MaterializeResult:
    """The net, trained on a sample of the shards that are present; a PCA for little data.

    Trained once. Shards that arrive later use it as it is: training again is a decision, since
    all codes are made again after it.
    """
    with station(context):
        run = data.run()
        manifest = stations.snip_model(run, again=config.again)
    return show.of_whole(context, manifest, **show.missing(run, data.layout.clip_features))


@dg.asset(
    group_name=GROUP,
    kinds={"numpy", "pytorch"},
    deps=["clip_features", "snip_model"],
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
)
def snip_features(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """Each row as float16, unit length, `dim` numbers: `{key}.npy`."""
    keys = chosen(context)
    with station(context):
        manifests = fan_out(stations.snip_features, data.run(), keys)
    return show.of_shards(context, manifests, *made_with(data)["snip_features"])
