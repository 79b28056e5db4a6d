"""The index: inverted lists of codes, a dozen bytes a row."""

import dagster as dg

from snip_assets.engine import stations
from snip_assets.engine.fanout import fan_out
from snip_assets.partitions import shards
from snip_assets.report import metadata as show
from snip_assets.resources import DataSet
from snip_assets.versions import made_with, version_of

from .station import CODE_VERSION, HEAVY, Training, backfill_policy, chosen, station

GROUP = "index"


@dg.asset(
    group_name=GROUP,
    kinds={"faiss"},
    deps=["snip_features"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
    pool=HEAVY,
)
def trained_index(
    context: dg.AssetExecutionContext, data: DataSet, config: Training
) -> dg.MaterializeResult:
    """Centroids and codec, empty, with the slack and probes that reach the target recall.

    Trained once, like the net.
    """
    with station(context):
        run = data.run()
        manifest = stations.trained_index(run, again=config.again)
    return show.of_whole(context, manifest, **show.missing(run, data.layout.snip_features))


@dg.asset(
    group_name=GROUP,
    kinds={"faiss", "numpy"},
    deps=["snip_features", "trained_index"],
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
)
def index_shards(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """The codes of each shard, sorted by inverted list; no copy of the centroids."""
    keys = chosen(context)
    with station(context):
        manifests = fan_out(stations.index_shards, data.run(), keys)
    return show.of_shards(context, manifests, *made_with(data)["index_shards"])


@dg.asset(
    group_name=GROUP,
    kinds={"faiss"},
    deps=["index_shards", "trained_index"],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=CODE_VERSION,
    pool=HEAVY,
)
def snip_index(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """All shards list by list, memory-mapped; `snip index export` makes a plain FAISS file of it.

    Its data version is that of the trained index: a later shard adds rows after all others,
    which the pairs of earlier shards never look at, so those stay up to date. The version of the
    contents is in the metadata as `version`.
    """
    with station(context):
        run = data.run()
        manifest = stations.snip_index(run)
    return show.of_whole(
        context,
        manifest,
        version_of(data.layout.trained_index),
        **show.missing(run, data.layout.index_shards),
    )
