"""What calibration goes by: sampled rows as the index sees them, and what their pairs need.

For each true pair it is noted what it would take to find it: the margin within which the later row
must probe (see `assign`), and the excess ADC(i, j) - ADC(i, i) that must be allowed (see `join`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from .axes import Axes, leading_axes, scale_of
from .calibration import QUERIES, Sample, affordable
from .errors import SnipError
from .exact import count_near, exact_pairs, sum_squares
from .kernels.whole_rows import whole_rows
from .known_pairs import NEAR_FACTOR, KnownPairs
from .list_queries import UNIT
from .settings import Settings
from .stand_ins import stand_ins
from .threads import ordered_map
from .trained import TrainedIndex

# Pairs without stand-ins; of more than so many rows, where the candidates that these ask for cost
# more than all else, and so a few pairs must do.
FEWEST_PAIRS, MANY_ROWS, FEW_PAIRS = 400, 1_000_000, 50
FEWEST_TO_REFUSE = 100
PAIRS_AT_ONCE = 1 << 13
RESIDUALS = 65_536
# Near rows of all queries that are held, about 100 bytes each; queries that these are counted for,
# and that are searched for at the least.
MOST_NEAR, COUNTED, FEWEST_HELD = 1 << 23, 256, 64
WIDTHS = (16, 24, 32, 48, 64)


@dataclass
class Placed:
    """Rows as the index sees them.

    Attributes
    ----------
    lists, margin
        int64 and float32[n, probes]: the nearest lists, and the margin within which each is probed.
    decoded
        float32[n, dim]: centroid and decoded residual.
    codes
        uint8[n, code size].
    error
        float32[n]: squared distance of a row and its decoded code.
    """

    lists: np.ndarray
    margin: np.ndarray
    decoded: np.ndarray
    codes: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, trained: TrainedIndex, x: np.ndarray, probes: int, workers: int) -> Placed:
        """Place SNIP features, float32[n, dim]."""

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


@dataclass(frozen=True)
class Leading:
    """Leading axes of the residuals, and the join's own coordinates on some of them.

    Attributes
    ----------
    axes
        float32[dim, most], largest variance first.
    first
        The first ones of these, as many as may be chosen.
    centroids
        float32[lists, dim].
    """

    axes: np.ndarray
    first: list[Axes]
    centroids: np.ndarray

    @classmethod
    def of(cls, trained: TrainedIndex, residuals: np.ndarray) -> Leading:
        """Those of residuals, float32[n, dim]."""
        axes = leading_axes(residuals, trained.dim)
        widths = [w for w in WIDTHS if w < len(axes)] or [len(axes)]
        first = [Axes(axes[:, :w], scale_of(residuals, axes[:, :w])) for w in widths]
        return cls(axes, first, trained.centroids)

    def squared(self, x: np.ndarray, decoded: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """Squared distances of rows and decoded rows of lists, on each number of axes.

        Where they are near each other, rounding to steps adds more than lies between them.
        """
        residuals = decoded - self.centroids[lists]
        return np.stack([self._squared(axes, x, residuals, lists) for axes in self.first], axis=1)

    def _squared(self, axes: Axes, x, residuals, lists) -> np.ndarray:
        seen = axes.project(x) - axes.project(self.centroids[lists])
        one, other = (axes.coordinates(own).steps for own in (seen, axes.project(residuals)))
        return ((one.astype(np.int32) - other) ** 2).sum(1) / axes.scale**2


def _rounded(x: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """float64[n]: squared distances of rows and decoded rows, both rounded to steps."""
    rows, others = (
        whole_rows(own)[: len(x), : x.shape[1]].astype(np.int32) for own in (x, decoded)
    )
    return ((rows - others) ** 2).sum(1, dtype=np.int64) / UNIT


@dataclass
class Needs:
    """What it takes to find each true pair.

    Attributes
    ----------
    margin, excess
        float[m]: of the later row for the earlier one's list, and of both, rounded as in the join;
        see the module.
    short
        float[m, widths]: the excess on each number of leading axes alone, rounded as in the join.
    snip
        float[m]: SNIP distance.
    """

    margin: np.ndarray
    excess: np.ndarray
    short: np.ndarray
    snip: np.ndarray

    @classmethod
    def of(cls, x, placed, later, earlier, leading) -> Needs:
        """Those of pairs of the placed rows `x`, by position."""

        def block(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
            at = placed.lists[one] == placed.lists[other, :1]
            margin = np.where(at.any(1), placed.margin[one, at.argmax(1)], np.inf)
            excess = _rounded(x[one], placed.decoded[other]) - placed.error[one]
            apart, own = (
                leading.squared(x[one], placed.decoded[row], placed.lists[row, 0])
                for row in (other, one)
            )
            return margin, excess, apart - own, sum_squares(x[one], x[other])

        starts = range(0, max(len(later), 1), PAIRS_AT_ONCE)
        parts = [
            block(later[s : s + PAIRS_AT_ONCE], earlier[s : s + PAIRS_AT_ONCE]) for s in starts
        ]
        return cls(*(np.concatenate(own) for own in zip(*parts, strict=True)))

    @classmethod
    def either_way(cls, x, placed, one, other, leading) -> Needs:
        """Which row of a pair is the later one is chance: both ways tell what pairs need."""
        return cls.of(x, placed, one, other, leading) + cls.of(x, placed, other, one, leading)

    def __add__(self, other: Needs) -> Needs:
        names = ("margin", "excess", "short", "snip")
        return Needs(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


@dataclass
class Evidence:
    """All that is known of a sample and its true pairs.

    Attributes
    ----------
    sample
        See `Sample`.
    placed
        Its rows.
    theirs
        The rows of known pairs, if there are any.
    queries
        int64[q], ascending: positions in the sample of rows whose pairs were searched for.
    later, earlier
        int64[m]: all true pairs of these.
    leading
        Of the residuals of the first rows.
    needs
        Of one pair a row, and of stand-ins.
    pairs
        True pairs among these, each counted once.
    stand_ins
        Whether there are stand-ins.
    """

    sample: Sample
    placed: Placed
    theirs: Placed | None
    queries: np.ndarray
    later: np.ndarray
    earlier: np.ndarray
    leading: Leading
    needs: Needs
    pairs: int
    stand_ins: bool


def gather(
    trained: TrainedIndex, sample: Sample, settings: Settings, known: KnownPairs | None, probes: int
) -> Evidence:
    """Place the sample, find its true pairs and what they need; few pairs get stand-ins.

    Raises
    ------
    SnipError
        Too many pairs lie further apart than the probes reach.
    """
    workers = settings.workers
    queries, later, earlier = _own_pairs(sample, settings)
    placed = Placed.of(trained, sample.snip, probes, workers)
    residuals = sample.snip[:RESIDUALS] - trained.centroids[placed.lists[:RESIDUALS, 0]]
    leading = Leading.of(trained, residuals)
    one_a_row = partial(_one_a_row, seed=settings.seed)
    some = one_a_row(later, earlier)
    needs = Needs.either_way(sample.snip, placed, later[some], earlier[some], leading)
    theirs = None
    if known is not None:
        theirs = Placed.of(trained, known.snip, probes, workers)
        one, other = known.later[known.true], known.earlier[known.true]
        some = one_a_row(one, other)
        needs += Needs.either_way(known.snip, theirs, one[some], other[some], leading)
    pairs = len(needs.snip) // 2
    _require_reach(needs.margin, settings.target_recall, probes)
    if few := pairs < (FEWEST_PAIRS if sample.rows <= MANY_ROWS else FEW_PAIRS):
        x = stand_ins(sample, known, queries, settings.max_distance, settings.seed, workers)
        moved = Placed.of(trained, x, probes, workers)
        one, other = np.split(np.arange(len(x)), 2)
        needs += Needs.either_way(x, moved, one, other, leading)
    return Evidence(
        sample=sample,
        placed=placed,
        theirs=theirs,
        queries=queries,
        later=later,
        earlier=earlier,
        leading=leading,
        needs=needs,
        pairs=pairs,
        stand_ins=few,
    )


def _own_pairs(sample: Sample, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, and the true pairs of these in the sample."""
    if sample.raw is None:
        none = np.empty(0, np.int64)
        return sample.queries(QUERIES, settings.seed), none, none
    n, dim = sample.raw.shape
    count = max(QUERIES, int(affordable(sample.rows, dim) / (2.0 * n * (dim + 128))))
    count = min(count, _holdable(sample, settings))
    for every in (False, True):
        queries = sample.queries(count, settings.seed, every=every)
        later, earlier = exact_pairs(sample.raw, queries, settings.max_distance, settings.workers)
        # Each of their rows counts once.
        rows = len(np.unique(np.concatenate([later, earlier])))
        if rows >= FEWEST_PAIRS or len(queries) == min(count, n):
            break
    return queries, later, earlier


def _holdable(sample: Sample, settings: Settings) -> int:
    """Queries whose near rows, of which groups of near copies have many, fit in memory."""
    some = sample.queries(COUNTED, settings.seed)
    assert sample.raw is not None
    near = count_near(sample.raw, some, NEAR_FACTOR * settings.max_distance, settings.workers)
    return max(FEWEST_HELD, MOST_NEAR * len(some) // max(1, near))


def _one_a_row(later: np.ndarray, earlier: np.ndarray, seed: int) -> np.ndarray:
    """Places of one random pair of each row that has any, each once.

    All pairs of a large group would outnumber, by the square of its rows, all other pairs of the
    data set, and decide alone.
    """
    ends = np.concatenate([later, earlier])
    order = np.random.default_rng(seed).permutation(len(ends))
    chosen = order[np.unique(ends[order], return_index=True)[1]]
    return np.unique(chosen % max(1, len(later)))


def _require_reach(margin: np.ndarray, target: float, probes: int) -> None:
    lost = 1 - np.isfinite(margin).mean() if len(margin) else 0.0
    if 1 - lost < target and len(margin) >= FEWEST_TO_REFUSE:
        raise SnipError(
            f"recall {target} cannot be reached: {lost:.4f} of the sampled pairs lie further apart "
            f"than {probes} probes; raise max_probes, use fewer lists, or lower target_recall."
        )
