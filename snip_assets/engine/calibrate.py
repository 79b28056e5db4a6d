"""Calibration: the slack and the probe radius that reach a target recall at the least cost.

Rows are sampled, their true pairs found by exact search in the raw features, and for each pair it
is noted what it would take to find it: the margin within which the later row must probe (see
`assign`), and the excess ADC(i, j) - ADC(i, i) that must be allowed (see `join`). Both losses are
kept apart. The same sample gives the thresholds and the accuracy of the coarser tiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import choices
from .axes import leading_axes, scale_of
from .calibration import QUERIES, Calibration, Sample, affordable
from .code_distance import CodeErrors
from .errors import SnipError
from .exact import exact_pairs, sum_squares
from .known_pairs import KnownPairs
from .settings import Settings
from .stand_ins import stand_ins
from .threads import ordered_map
from .tiers import accuracy, known_accuracy
from .trained import TrainedIndex

# Pairs without stand-ins; of more than so many rows, where the candidates that these ask for cost
# more than all else, and so a few pairs must do.
FEWEST_PAIRS, MANY_ROWS, FEW_PAIRS = 400, 1_000_000, 50
FEWEST_TO_REFUSE, MOST_CANDIDATES = 100, 16.0
PAIRS_AT_ONCE = 1 << 13
FEWEST_BEYOND, TAIL = 10, 0.05
# Data that arrives later fits net and codec a little less well than the data they saw.
ALLOWANCE = 1.1
WIDTHS = (16, 24, 32, 48, 64)
# Nanoseconds of one core; only their ratios matter. A pair and an axis as the join's kernel took
# them with 16 to 64 axes.
NS_PER_PAIR, NS_PER_AXIS, NS_PER_EXCESS, NS_PER_CANDIDATE = 0.075, 0.0066, 30.0, 1000.0


@dataclass
class _Placed:
    """A sample as the index sees it."""

    lists: np.ndarray
    margin: np.ndarray
    decoded: np.ndarray  # float32[n, dim]: centroid + decoded residual
    codes: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, trained: TrainedIndex, x: np.ndarray, probes: int, workers: int) -> _Placed:
        def work(block: np.ndarray) -> tuple[np.ndarray, ...]:
            lists, distance = trained.assigner.nearest(block, probes)
            margin = trained.assigner.margins(lists, distance)
            residual = block - trained.centroids[lists[:, 0]]
            codes = trained.codec.encode(residual)
            decoded = trained.codec.decode(codes)
            error = ((residual - decoded) ** 2).sum(1)
            return lists, margin, decoded + trained.centroids[lists[:, 0]], codes, error

        blocks = (x[i : i + 2048] for i in range(0, len(x), 2048))
        parts = list(ordered_map(work, blocks, workers))
        return cls(*(np.concatenate(p) for p in zip(*parts, strict=True)))


@dataclass
class _Needs:
    """What it takes to find each true pair.

    Margin, whole and short excess (one column a width) and SNIP distance.
    """

    margin: np.ndarray
    excess: np.ndarray
    short: np.ndarray
    snip: np.ndarray

    @classmethod
    def of(cls, x, placed, later, earlier, axes) -> _Needs:
        ends = np.array(_widths(axes)) - 1

        def block(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
            at = placed.lists[one] == placed.lists[other, :1]
            margin = np.where(at.any(1), placed.margin[one, at.argmax(1)], np.inf)
            excess = sum_squares(x[one], placed.decoded[other]) - placed.error[one]
            apart = np.cumsum(((x[one] - placed.decoded[other]) @ axes) ** 2, axis=1)
            own = np.cumsum(((x[one] - placed.decoded[one]) @ axes) ** 2, axis=1)
            return margin, excess, (apart - own)[:, ends], sum_squares(x[one], x[other])

        starts = range(0, max(len(later), 1), PAIRS_AT_ONCE)
        parts = [
            block(later[s : s + PAIRS_AT_ONCE], earlier[s : s + PAIRS_AT_ONCE]) for s in starts
        ]
        return cls(*(np.concatenate(own) for own in zip(*parts, strict=True)))

    @classmethod
    def either_way(cls, x, placed, one, other, axes) -> _Needs:
        """Which row of a pair is the later one is chance: both ways tell what pairs need."""
        return cls.of(x, placed, one, other, axes) + cls.of(x, placed, other, one, axes)

    def __add__(self, other: _Needs) -> _Needs:
        names = ("margin", "excess", "short", "snip")
        return _Needs(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


def _widths(axes: np.ndarray) -> list[int]:
    return [w for w in WIDTHS if w < len(axes)] or [len(axes)]


def _own_pairs(sample: Sample, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, and the true pairs of these in the sample."""
    if sample.raw is None:
        none = np.empty(0, np.int64)
        return sample.queries(QUERIES, settings.seed), none, none
    n, dim = sample.raw.shape
    count = max(QUERIES, int(affordable(sample.rows, dim) / (2.0 * n * (dim + 128))))
    for every in (False, True):
        queries = sample.queries(count, settings.seed, every=every)
        later, earlier, _ = exact_pairs(
            sample.raw, queries, settings.max_distance, settings.workers
        )
        if len(later) >= FEWEST_PAIRS or len(queries) == min(count, n):
            break
    return queries, later, earlier


def _one_a_row(
    later: np.ndarray, earlier: np.ndarray, weight: np.ndarray, most: int, seed: int
) -> np.ndarray:
    """Places of one random pair of each row, that of its end with more partners.

    All pairs of a large group would outnumber, by the square of its rows, all other pairs of the
    data set, and decide alone. Of a row with more than `most` partners not all must be found.
    """
    ends = np.concatenate([later, earlier])
    partners = np.bincount(ends, np.concatenate([weight, weight]))
    owner = np.where(partners[later] >= partners[earlier], later, earlier)
    order = np.random.default_rng(seed).permutation(len(owner))
    chosen = order[np.unique(owner[order], return_index=True)[1]]
    return np.sort(chosen[partners[owner[chosen]] <= most])


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
    n, probes = len(sample.snip), min(trained.lists, choices.probes(sample.rows, settings))
    queries, later, earlier = _own_pairs(sample, settings)
    placed = _Placed.of(trained, sample.snip, probes, settings.workers)
    home = placed.lists[:, 0]
    residuals = (sample.snip - trained.centroids[home])[:65_536]
    axes = leading_axes(residuals, trained.dim)
    one_a_row = partial(_one_a_row, most=settings.max_partners, seed=settings.seed)
    some = one_a_row(later, earlier, np.full(len(later), sample.rows / n))
    needs = _Needs.either_way(sample.snip, placed, later[some], earlier[some], axes)
    theirs = None
    if known is not None:
        theirs = _Placed.of(trained, known.snip, probes, settings.workers)
        one, other = known.later[known.true], known.earlier[known.true]
        some = one_a_row(one, other, known.weight[known.true])
        needs += _Needs.either_way(known.snip, theirs, one[some], other[some], axes)
    pairs = len(needs.snip) // 2
    _require_reach(needs.margin, settings.target_recall, probes)
    if planted := pairs < (FEWEST_PAIRS if sample.rows <= MANY_ROWS else FEW_PAIRS):
        limit, seed = settings.max_distance, settings.seed
        x = stand_ins(sample, known, queries, limit, seed, settings.workers)
        moved = _Placed.of(trained, x, probes, settings.workers)
        one, other = np.split(np.arange(len(x)), 2)
        needs += _Needs.either_way(x, moved, one, other, axes)
    loss = choices.loss(sample.rows, settings)
    # Stand-ins are no farther apart than pairs may be.
    beyond = partial(exceeded_by, bounded=planted)
    short = _Short.of(sample, placed, needs, axes, loss, beyond)
    width, short_slack, lost_short = short.choose(placed, sample, queries[:256])
    chosen_axes = np.ascontiguousarray(axes[:, :width])
    margin, excess, snip = needs.margin, needs.excess, needs.snip
    histogram = _candidate_curve(placed, sample, queries[:512])
    slack, radius, snip_limit = _choose(
        *(margin, np.where(lost_short, np.inf, excess), snip, placed, histogram),
        *(sample.rows, loss, beyond),
    )
    if planted and sample.rows > MANY_ROWS:
        # Hardly a row has a pair: what looking for them costs is bounded.
        slack = min(slack, _slack_for(MOST_CANDIDATES, histogram, sample.rows, n))
    found = (margin <= radius) & (excess <= slack) & ~lost_short
    probes_per_row = float((placed.margin <= radius).sum(1).mean())
    if expected is None:
        expected = CodeErrors.learn(trained, sample.snip, settings.workers)
    if known is not None and theirs is not None:
        tiers = known_accuracy(known, theirs.decoded, expected.of(theirs.codes))
    else:
        coded = placed.decoded, expected.of(placed.codes)
        tiers = _accuracy(sample, *coded, queries, later * n + earlier, settings)
    calibration = Calibration(
        slack=slack,
        radius=radius,
        probes=probes,
        width=width,
        axis_scale=scale_of(residuals, chosen_axes),
        short_slack=short_slack,
        snip_limit=snip_limit,
        snip_max_distance=tiers["snip"]["max_distance"],
        code_max_distance=tiers["codes"]["max_distance"],
        code_power=tiers["codes"].get("power", 0.0),
        recall=float((found & (snip <= snip_limit)).mean()),
        lost_by_probe=float((margin > radius).mean()),
        lost_by_code=float((excess > slack).mean()),
        lost_by_short_code=float(lost_short.mean()),
        lost_by_snip_limit=float((snip > snip_limit).mean()),
        pairs=pairs,
        candidates_per_row=_candidates(histogram, slack, sample.rows, n),
        probes_per_row=probes_per_row,
        planted=planted,
        curve=_curve(excess, margin, radius, histogram, sample.rows, n),
        tiers=tiers,
    )
    return calibration, chosen_axes


def _accuracy(sample, decoded, errors, queries, keys, settings) -> dict[str, Any]:
    """Thresholds of the coarser tiers; `keys` name the true pairs."""
    # Of the copies, as many as of the other pairs are seen: those with an end among queries.
    copies = sample.copies * (1 - (1 - len(queries) / len(sample.snip)) ** 2)
    true = np.unique(keys)
    return accuracy(sample.snip, decoded, errors, queries, true, copies, settings)


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


def _candidate_curve(placed: _Placed, sample: Sample, queries: np.ndarray) -> np.ndarray:
    """Candidates a query over the grid of slacks, among the sampled rows of all probed lists."""
    home = placed.lists[:, 0]
    counts = np.zeros(len(GRID))
    norms = (placed.decoded**2).sum(1)
    for start in range(0, len(queries), 64):
        part = queries[start : start + 64]
        x = sample.snip[part]
        adc = (x**2).sum(1)[:, None] + norms - 2 * x @ placed.decoded.T
        excess = adc - placed.error[part][:, None]
        probed = (placed.lists[part][:, :2, None] == home[None, None, :]).any(1)
        probed[np.arange(len(part)), part] = False
        counts += np.histogram(excess[probed], bins=np.append(GRID, np.inf))[0]
    return np.cumsum(counts) / max(len(queries), 1)


def _candidates(histogram: np.ndarray, slack: float, rows: int, sampled: int) -> float:
    """Earlier candidates a row at the size of the data set."""
    return float(np.interp(slack, GRID, histogram) * rows / sampled / 2)


def _slack_for(candidates: float, histogram: np.ndarray, rows: int, sampled: int) -> float:
    """The largest slack on the grid with so many candidates a row at the most."""
    a_row = histogram * rows / sampled / 2
    return max(0.0, float(GRID[max(int(np.searchsorted(a_row, candidates, "right")) - 1, 0)]))


def _require_reach(margin: np.ndarray, target: float, probes: int) -> None:
    lost = 1 - np.isfinite(margin).mean() if len(margin) else 0.0
    if 1 - lost < target and len(margin) >= FEWEST_TO_REFUSE:
        raise SnipError(
            f"recall {target} cannot be reached: {lost:.4f} of the sampled pairs lie further apart "
            f"than {probes} probes; raise max_probes, use fewer lists, or lower target_recall."
        )


def _choose(
    margin, excess, snip, placed, histogram, rows, loss, beyond
) -> tuple[float, float, float]:
    """The cheapest (slack, radius) that lose no more of the sampled pairs than they may."""
    # Half of the allowed loss is kept for the error of the sample.
    aim = 1 - loss / 2
    lost_snip = (1 - aim) / 10
    snip_limit = ALLOWANCE * beyond(snip, lost_snip) + 1e-4
    reached = np.isfinite(margin)
    aim = min(aim, float(reached.mean()))
    # Pairs beyond all probes are lost, and no radius brings them back.
    farthest = ALLOWANCE * float(margin[reached].max()) + 1e-6
    list_length = rows / max(len(np.unique(placed.lists[:, 0])), 1)
    best: tuple[float, float, float] | None = None
    for share in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        radius = min(ALLOWANCE * beyond(margin, (1 - aim) * share) + 1e-6, farthest)
        inside = np.sort(excess[margin <= radius])
        needed = int(np.ceil(aim * len(margin)))
        if needed > len(inside):
            continue
        slack = ALLOWANCE * beyond(inside, 1 - needed / len(inside)) + 1e-5
        if not np.isfinite(slack):
            continue
        probes = float((placed.margin <= radius).sum(1).mean())
        cost = probes * list_length / 2 * (NS_PER_PAIR + 32 * NS_PER_AXIS)
        cost += _candidates(histogram, slack, rows, len(placed.error)) * NS_PER_CANDIDATE
        if best is None or cost < best[0]:
            best = (cost, slack, radius)
    if best is None:
        radius = float(margin[reached].max()) + 1e-6
        slack = float(excess[np.isfinite(excess)].max()) + 1e-5
        return slack, radius, snip_limit
    return best[1], best[2], snip_limit


@dataclass
class _Short:
    """The excess of the true pairs on each width of leading axes, and the slack it asks for."""

    axes: np.ndarray
    widths: list[int]
    slacks: list[float]
    lost: list[np.ndarray]
    errors: np.ndarray

    @classmethod
    def of(cls, sample, placed, needs, axes, loss, beyond) -> _Short:
        widths = _widths(axes)
        # A tenth of the allowed loss may be due to the preselection.
        allowed = loss / 10
        ends = np.array(widths) - 1
        errors = np.cumsum(((sample.snip - placed.decoded) @ axes) ** 2, axis=1)[:, ends]
        slacks = [ALLOWANCE * beyond(own, allowed) + 1e-4 for own in needs.short.T]
        lost = [e > s for e, s in zip(needs.short.T, slacks, strict=True)]
        return cls(axes, widths, slacks, lost, errors)

    def choose(self, placed, sample, queries) -> tuple[int, float, np.ndarray]:
        """The width that makes product, scan and exact ADC cheapest together."""
        home = placed.lists[:, 0]
        passed, pairs = np.zeros(len(self.widths)), 0
        for query in queries:
            rows = np.flatnonzero(home == home[query])
            rows = rows[rows != query][:4096]
            apart = (placed.decoded[rows] - sample.snip[query]) @ self.axes
            short = np.cumsum(apart**2, axis=1)[:, np.array(self.widths) - 1]
            passed += (short - self.errors[query] <= np.array(self.slacks)).sum(0)
            pairs += len(rows)
        cost = NS_PER_PAIR + NS_PER_AXIS * np.array(self.widths)
        best = int(np.argmin(cost + NS_PER_EXCESS * passed / max(pairs, 1)))
        return self.widths[best], self.slacks[best], self.lost[best]


def _curve(excess, margin, radius, histogram, rows, sampled) -> list[dict[str, float]]:
    found = np.sort(excess[margin <= radius])
    result = []
    for slack in np.linspace(0, max(0.05, float(np.quantile(excess, 0.9999)) * 1.2), 40):
        recall = float(np.searchsorted(found, slack, "right")) / len(margin)
        per_row = _candidates(histogram, float(slack), rows, sampled)
        result.append({"slack": float(slack), "recall": recall, "candidates_per_row": per_row})
    return result
