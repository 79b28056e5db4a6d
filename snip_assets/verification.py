"""What an estimate means: bounds, history, trend. Pure, but for reading Dagster's history."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import dagster as dg
import pyarrow as pa

from .engine.audit import Interval
from .engine.errors import SnipError
from .report import metadata as show
from .report import plots

# Rounding of the end of an interval that is exactly 1 or 0.
ROUNDING = 1e-9
HISTORY = 90


Check = TypeVar("Check", bound=Callable[..., dg.AssetCheckResult])


def judged(check: Check) -> Check:
    """Have a check whose asset is missing or damaged fail with the message of that error."""

    @wraps(check)
    def judge(*given: Any, **named: Any) -> dg.AssetCheckResult:
        try:
            return check(*given, **named)
        except (SnipError, pa.ArrowException, OSError) as error:
            return dg.AssetCheckResult(
                passed=False, severity=dg.AssetCheckSeverity.ERROR, description=str(error)
            )

    return cast(Check, judge)


@dataclass(frozen=True)
class Point:
    """One former result: Unix time, estimate and interval."""

    time: float
    estimate: float
    low: float
    high: float


def below(found: Interval, warn: float, fail: float) -> dg.AssetCheckSeverity | None:
    """How bad a share is that should be high: the whole interval must lie below a bound."""
    if found.trials == 0:
        return None
    if found.high < fail - ROUNDING:
        return dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckSeverity.WARN if found.high < warn - ROUNDING else None


def above(found: Interval, warn: float, fail: float) -> dg.AssetCheckSeverity | None:
    """How bad a share is that should be low."""
    if found.trials == 0 or found.successes == 0:
        return None
    if found.low > fail:
        return dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckSeverity.WARN if found.low > warn else None


def history(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> list[Point]:
    """The last results of a check, `HISTORY` of them at the most, oldest first."""
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=HISTORY)
    points = []
    for record in records:
        evaluation = record.event.asset_check_evaluation if record.event else None
        values: dict[str, Any] = (
            {name: value.value for name, value in evaluation.metadata.items()} if evaluation else {}
        )
        if {"estimate", "interval_low", "interval_high"} <= values.keys():
            points.append(
                Point(
                    record.create_timestamp,
                    values["estimate"],
                    values["interval_low"],
                    values["interval_high"],
                )
            )
    return points[::-1]


def result(
    context: dg.AssetCheckExecutionContext,
    found: Interval,
    severity: dg.AssetCheckSeverity | None,
    description: str,
    **more: Any,
) -> dg.AssetCheckResult:
    """The result of a check with its interval, and the trend over its former results."""
    key = next(iter(context.op_execution_context.selected_asset_check_keys))
    now = Point(
        datetime.datetime.now(datetime.timezone.utc).timestamp(),
        float(found.estimate),
        float(found.low),
        float(found.high),
    )
    # Without trials there is no estimate: NaN is no number that the UI can show.
    points = [*history(context.instance, key), *([now] if found.trials else [])]
    trend = plots.trend([(p.time, p.estimate, p.low, p.high) for p in points], key.name)
    return dg.AssetCheckResult(
        passed=severity is None,
        severity=severity or dg.AssetCheckSeverity.ERROR,
        description=description if severity else None,
        metadata={**show.of_interval(found), **more, "trend": dg.MetadataValue.md(trend)},
    )


def seed_of(day: datetime.date) -> int:
    """A seed that differs from day to day, and is the same for one day: 20260131."""
    return int(day.strftime("%Y%m%d"))
