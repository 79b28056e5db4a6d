"""The shards as they come: metadata and raw features, read whole once and judged."""

import dagster as dg

from snip_assets.engine import stations
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.fanout import fan_out
from snip_assets.partitions import shards
from snip_assets.report import metadata as show
from snip_assets.resources import DataSet

from .station import CODE_VERSION, backfill_policy, chosen, station

GROUP = "source"


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
    tags={"station": "metadata"},
)
def metadata(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """The user's metadata: url, caption and any other columns; row i describes feature row i.

    Nothing is copied; the shard is read once, and its columns and row count are recorded.
    """
    keys = chosen(context)
    with station(context):
        run = data.run()
        manifests = stations.metadata(run, keys)
    samples = {key: run.registry[key].metadata for key in keys}
    return show.of_shards(context, manifests, samples=samples)


@dg.asset(
    group_name=GROUP,
    kinds={"numpy"},
    partitions_def=shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
    tags={"station": "clip_features"},
)
def clip_features(context: dg.AssetExecutionContext, data: DataSet) -> dg.MaterializeResult:
    """The user's CLIP features: `img_emb_{key}.npy`, any dimension, any scale.

    Nothing is copied; every value is read once. NaN, infinite and zero rows are refused, and a
    64-bit hash of each row is stored: rows with equal bytes are exact copies.
    """
    keys = chosen(context)
    with station(context):
        run = data.run()
        # Other rows would leave the pairs as they are, and nothing here would tell.
        refused = {} if _makes_pairs(context) else stations.replaced(run, keys)
        good = [key for key in keys if key not in refused]
        manifests = fan_out(stations.clip_features, run, good) if good else {}
        if refused:
            raise BadInputError(" ".join(refused.values()))
    return show.of_shards(context, manifests)


def _makes_pairs(context: dg.AssetExecutionContext) -> bool:
    """Whether this run makes pairs as well: not where some of its steps are run again alone."""
    some = context.run.step_keys_to_execute
    pairs = "duplicate_pairs"
    together = context.job_def.asset_layer.executable_asset_keys
    return dg.AssetKey(pairs) in together and (some is None or pairs in some)
