"""Calibration: the slack and the probe radius that reach a target recall at the least cost.

Rows are sampled, their true pairs found by exact search in the raw features, and what it would
take to find them is weighed (see `evidence`): both losses are kept apart. The same sample gives
the thresholds and the accuracy of the coarser tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import choices
from .axes import Axes
from .calibration import Calibration, Sample
from .code_distance import CodeErrors
from .evidence import MANY_ROWS, Evidence, Leading, Placed, gather
from .known_pairs import KnownPairs
from .settings import Settings
from .threads import ordered_map
from .tiers import accuracy, known_accuracy
from .trained import TrainedIndex

# See `exceeded_by`.
Beyond = Callable[[np.ndarray, float], float]
# Of stand-ins among many rows.
MOST_CANDIDATES = 16.0
FEWEST_BEYOND, TAIL = 10, 0.05
# Data that arrives later fits net and codec a little less well than the data they saw.
ALLOWANCE = 1.1
# Nanoseconds of one core; only their ratios matter. A pair and an axis as the join's kernel took
# them with 16 to 64 axes.
NS_PER_PAIR, NS_PER_AXIS, NS_PER_EXCESS, NS_PER_CANDIDATE = 0.075, 0.0066, 30.0, 1000.0


def calibrate(
    trained: TrainedIndex,
    sample: Sample,
    settings: Settings,
    known: KnownPairs | None = None,
    expected: CodeErrors | None = None,
) -> tuple[Calibration, np.ndarray]:
    """Choose slack, probe radius and the rest.

    Parameters
    ----------
    sample
        Random rows.
    known
        More true pairs; those that there are, when the sample has no raw features.
    expected
        What the codec's words miss; learned from the sample where it is not given.

    Returns
    -------
    calibration
    axes : float32[dim, width]
        Leading axes of the residuals.

    Raises
    ------
    SnipError
        The target recall cannot be reached; the message says by what.
    """
    probes = min(trained.lists, choices.probes(sample.rows, settings))
    seen = gather(trained, sample, settings, known, probes)
    limits = _Limits.choose(seen, choices.loss(sample.rows, settings), settings.workers)
    chosen_axes = np.ascontiguousarray(seen.leading.axes[:, : limits.width])
    if expected is None:
        expected = CodeErrors.learn(trained, sample.snip, settings.workers)
    tiers = _tiers(seen, settings, known, expected)
    calibration = Calibration(
        **vars(limits),
        probes=probes,
        snip_max_distance=tiers["snip"]["max_distance"],
        code_max_distance=tiers["codes"]["max_distance"],
        code_power=tiers["codes"].get("power", 0.0),
        sampled_pairs=seen.pairs,
        stand_ins=seen.stand_ins,
        tiers=tiers,
    )
    return calibration, chosen_axes


@dataclass
class _Limits:
    """What pairs are found by, and how many that finds: as in `Calibration`."""

    slack: float
    radius: float
    width: int
    axis_scale: float
    short_slack: float
    snip_limit: float
    recall: float
    lost_by_probe: float
    lost_by_code: float
    lost_by_short_code: float
    lost_by_snip_limit: float
    candidates_per_row: float
    probes_per_row: float
    curve: list[dict[str, float]]

    @classmethod
    def choose(cls, seen: Evidence, loss: float, workers: int) -> _Limits:
        """The cheapest that lose no more of the sampled pairs than they may."""
        sample, placed, needs = seen.sample, seen.placed, seen.needs
        n, rows = len(sample.snip), sample.rows
        # Stand-ins are no farther apart than pairs may be.
        beyond = partial(exceeded_by, bounded=seen.stand_ins)
        short = _Short.of(needs, seen.leading, loss, beyond)
        axes, short_slack, lost_short = short.choose(placed, sample, seen.queries[:256])
        margin, excess, snip = needs.margin, needs.excess, needs.snip
        histogram = _candidate_curve(placed, sample, seen.queries[:512], workers)
        snip_limit = ALLOWANCE * beyond(snip, loss / 20) + 1e-4
        reachable = np.where(lost_short, np.inf, excess)
        slack, radius = _choose(
            margin,
            reachable,
            placed,
            histogram,
            rows=rows,
            width=axes.width,
            loss=loss,
            beyond=beyond,
        )
        if seen.stand_ins and rows > MANY_ROWS:
            # Hardly a row has a pair: what looking for them costs is bounded.
            slack = min(slack, _slack_for(MOST_CANDIDATES, histogram, rows, n))
        found = (margin <= radius) & (excess <= slack) & ~lost_short
        return cls(
            slack=slack,
            radius=radius,
            width=axes.width,
            axis_scale=axes.scale,
            short_slack=short_slack,
            snip_limit=snip_limit,
            recall=float((found & (snip <= snip_limit)).mean()),
            lost_by_probe=float((margin > radius).mean()),
            lost_by_code=float((excess > slack).mean()),
            lost_by_short_code=float(lost_short.mean()),
            lost_by_snip_limit=float((snip > snip_limit).mean()),
            candidates_per_row=_candidates(histogram, slack, rows, n),
            probes_per_row=float((placed.margin <= radius).sum(1).mean()),
            curve=_curve(excess, margin, radius, histogram, rows, n),
        )


def _tiers(
    seen: Evidence, settings: Settings, known: KnownPairs | None, expected: CodeErrors
) -> dict[str, Any]:
    """Thresholds and accuracy of the coarser tiers."""
    sample, placed, queries = seen.sample, seen.placed, seen.queries
    if known is not None and seen.theirs is not None:
        return known_accuracy(known, seen.theirs.decoded, expected.of(seen.theirs.codes))
    n = len(sample.snip)
    # Of the copies, as many as of the other pairs are seen: those with an end among queries.
    copies = sample.copies * (1 - (1 - len(queries) / n) ** 2)
    true = np.unique(seen.later * n + seen.earlier)
    coded = placed.decoded, expected.of(placed.codes)
    return accuracy(sample.snip, *coded, queries, true, copies, settings)


def exceeded_by(values: np.ndarray, share: float, *, bounded: bool = False) -> float:
    """The value that a share of all is expected to exceed, of which these are a sample.

    Where fewer than ten of the sample lie beyond, their order says little; the tail is then taken
    to fall off exponentially beyond the 95th percentile, and the larger of both is returned, unless
    the values are bounded.

    Source: the peaks-over-threshold method, see Coles, "An Introduction to Statistical Modeling of
    Extreme Values" (2001), chapter 4, with shape 0.
    """
    found = float(np.quantile(values, 1 - share, method="higher"))
    if bounded or not np.isfinite(found) or share * len(values) >= FEWEST_BEYOND:
        return found
    known = values[np.isfinite(values)]
    floor = float(np.quantile(known, 1 - TAIL))
    beyond = known[known > floor] - floor
    if not len(beyond) or share >= TAIL:
        return found
    least = max(share, 0.1 / len(values))
    return max(found, floor + float(beyond.mean()) * float(np.log(TAIL / least)))


GRID = np.linspace(-0.2, 1.0, 481)
# Rows that are held against the queries at once, by a thread: about 20 MB.
COUNTED_ROWS = 2048


def _candidate_curve(
    placed: Placed, sample: Sample, queries: np.ndarray, workers: int
) -> np.ndarray:
    """Candidates a query over the grid of slacks, among the sampled rows of all probed lists."""
    x, near = sample.snip[queries], placed.lists[queries, :2, None]
    own = (x**2).sum(1) - placed.error[queries]

    def work(start: int) -> np.ndarray:
        rows = np.arange(start, min(len(sample.snip), start + COUNTED_ROWS))
        decoded, home = placed.decoded[rows], placed.lists[rows, 0]
        excess = own[:, None] + (decoded**2).sum(1) - 2 * x @ decoded.T
        probed = (near == home).any(1) & (queries[:, None] != rows)
        return np.histogram(excess[probed], bins=np.append(-np.inf, GRID))[0]

    starts = range(0, len(sample.snip), COUNTED_ROWS)
    counts = sum(ordered_map(work, starts, workers), np.zeros(len(GRID)))
    return np.cumsum(counts) / max(len(queries), 1)


def _candidates(histogram: np.ndarray, slack: float, rows: int, sampled: int) -> float:
    """Earlier candidates a row at the size of the data set."""
    return float(np.interp(slack, GRID, histogram) * rows / sampled / 2)


def _slack_for(candidates: float, histogram: np.ndarray, rows: int, sampled: int) -> float:
    """The largest slack on the grid with so many candidates a row at the most."""
    a_row = histogram * rows / sampled / 2
    return max(0.0, float(GRID[max(int(np.searchsorted(a_row, candidates, "right")) - 1, 0)]))


def _choose(
    margin: np.ndarray,
    excess: np.ndarray,
    placed: Placed,
    histogram: np.ndarray,
    *,
    rows: int,
    width: int,
    loss: float,
    beyond: Beyond,
) -> tuple[float, float]:
    """The cheapest (slack, radius) that lose no more of the sampled pairs than they may."""
    # Half of the allowed loss is kept for the error of the sample.
    aim = 1 - loss / 2
    reached, finite = np.isfinite(margin), excess[np.isfinite(excess)]
    if not reached.any():
        # The few pairs that there are lie beyond all probes: none can be found.
        return float(finite.max(initial=0.0)) + 1e-5, 1e-6
    aim = min(aim, float(reached.mean()))
    list_length = rows / max(len(np.unique(placed.lists[:, 0])), 1)
    best: tuple[float, float, float] | None = None
    for share in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        radius = _radius(margin, (1 - aim) * share, beyond)
        inside = np.sort(excess[margin <= radius])
        needed = int(np.ceil(aim * len(margin)))
        if needed > len(inside):
            continue
        slack = ALLOWANCE * beyond(inside, 1 - needed / len(inside)) + 1e-5
        if not np.isfinite(slack):
            continue
        probes = float((placed.margin <= radius).sum(1).mean())
        cost = probes * list_length / 2 * (NS_PER_PAIR + width * NS_PER_AXIS)
        cost += _candidates(histogram, slack, rows, len(placed.error)) * NS_PER_CANDIDATE
        if best is None or cost < best[0]:
            best = (cost, slack, radius)
    if best is None:
        radius = float(margin[reached].max()) + 1e-6
        slack = float(finite.max()) + 1e-5
        return slack, radius
    return best[1:]


def _radius(margin: np.ndarray, share: float, beyond: Beyond) -> float:
    """The radius that a share of the pairs may lie beyond."""
    farthest = beyond(margin, share)
    if not np.isfinite(farthest):
        # Pairs beyond all probes are lost, and no radius brings them back.
        farthest = float(margin[np.isfinite(margin)].max())
    return ALLOWANCE * farthest + 1e-6


@dataclass
class _Short:
    """The excess of the true pairs on each width of leading axes, and the slack it asks for."""

    leading: Leading
    slacks: list[float]
    lost: list[np.ndarray]

    @classmethod
    def of(cls, needs, leading, loss, beyond) -> _Short:
        # A tenth of the allowed loss may be due to the preselection.
        allowed = loss / 10
        slacks = [ALLOWANCE * beyond(own, allowed) + 1e-4 for own in needs.short.T]
        lost = [e > s for e, s in zip(needs.short.T, slacks, strict=True)]
        return cls(leading, slacks, lost)

    def choose(self, placed, sample, queries) -> tuple[Axes, float, np.ndarray]:
        """The axes that make product, scan and exact ADC cheapest together."""
        home, widths = placed.lists[:, 0], np.array([a.width for a in self.leading.first])

        def short(apart: np.ndarray) -> np.ndarray:
            return np.cumsum((apart @ self.leading.axes) ** 2, axis=1)[:, widths - 1]

        errors = short(placed.decoded[queries] - sample.snip[queries])
        passed, pairs = np.zeros(len(widths)), 0
        for query, error in zip(queries, errors, strict=True):
            rows = np.flatnonzero(home == home[query])
            rows = rows[rows != query][:4096]
            near = short(placed.decoded[rows] - sample.snip[query]) - error
            passed += (near <= np.array(self.slacks)).sum(0)
            pairs += len(rows)
        cost = NS_PER_PAIR + NS_PER_AXIS * widths
        best = int(np.argmin(cost + NS_PER_EXCESS * passed / max(pairs, 1)))
        return self.leading.first[best], self.slacks[best], self.lost[best]


def _curve(excess, margin, radius, histogram, rows, sampled) -> list[dict[str, float]]:
    found = np.sort(excess[margin <= radius])
    result = []
    for slack in np.linspace(0, max(0.05, float(np.quantile(excess, 0.9999)) * 1.2), 40):
        recall = float(np.searchsorted(found, slack, "right")) / len(margin)
        per_row = _candidates(histogram, float(slack), rows, sampled)
        result.append({"slack": float(slack), "recall": recall, "candidates_per_row": per_row})
    return result
