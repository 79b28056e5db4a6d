"""The asset check over what people marked."""

import dagster as dg

from snip_assets.resources import DataSet

from . import labels
from .metadata import of_interval

# Below this share of right pairs, with its whole interval, the threshold is too large.
LEAST_RIGHT = 0.9


@dg.asset_check(asset="dedup_report")
def reviewed_pairs(data: DataSet) -> dg.AssetCheckResult:
    """Random pairs that people marked (`snip review`) are the same picture.

    A warning when the whole 95% interval of their share lies below 0.9.
    """
    found = labels.shares(labels.load(data.layout))
    metadata: dict[str, float | int] = {"marked": sum(i.trials for i in found.values())}
    for kind, interval in found.items():
        metadata |= {f"{kind}_{name}": value for name, value in of_interval(interval).items()}
    random = found.get("random")
    return dg.AssetCheckResult(
        passed=random is None or random.high >= LEAST_RIGHT,
        severity=dg.AssetCheckSeverity.WARN,
        description=None if random else "no random pair is marked yet: see `snip review --help`",
        metadata=metadata,
    )
