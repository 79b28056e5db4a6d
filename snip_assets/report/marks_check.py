"""The asset check over what people marked."""

import dagster as dg

from snip_assets.resources import DataSet
from snip_assets.verification import judged

from . import marks
from .metadata import of_interval

# Below this share of right pairs, with its whole interval, the threshold is too large.
LEAST_RIGHT = 0.9


@dg.asset_check(asset="dedup_report")
@judged
def reviewed_pairs(data: DataSet) -> dg.AssetCheckResult:
    """Random pairs that people marked (`snip review`) are the same picture.

    A warning when the whole 95% interval of their share lies below 0.9.
    """
    found = marks.shares(marks.current(data.layout), data.max_distance)
    metadata: dict[str, float | int] = {"marked": sum(i.trials for i in found.values())}
    for kind, interval in found.items():
        metadata |= {f"{kind}_{name}": value for name, value in of_interval(interval).items()}
    random = found.get("random")
    say = "no random pair is marked yet: see `snip review --help`"
    if random is not None:
        wrong = random.trials - random.successes
        say = f"{wrong} of {random.trials} random pairs differ to the eye: lower max_distance"
    passed = random is None or random.high >= LEAST_RIGHT
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None if passed and random else say,
        metadata=metadata,
    )
