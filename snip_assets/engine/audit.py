"""How good the result is: shares estimated from samples, with their confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A share with its 95% confidence interval; `successes` of `trials`."""

    estimate: float
    low: float
    high: float
    successes: int
    trials: int


def wilson(successes: int, trials: int) -> Interval:
    """A share with its 95% Wilson score interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).
    """
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0, 0, 0)
    z = 1.959963984540054
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / trials + spread / (4 * trials)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), successes, trials)
