"""All rows near some rows, by exact search.

As in the join, whole coordinates on a few leading axes throw out nearly everything. A distance on
some axes never exceeds that on all, so nothing is lost; the whole distance then decides. For a few
hundred queries that is several times faster than the product of all queries with all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .axes import Axes, scale_of
from .features import BLOCK, Features, as_float32, normalised, search_blocks, take_rows
from .join import scanned
from .kernels import float_rows
from .kernels.byte_products import panels
from .kernels.byte_products import queries as as_queries
from .kernels.whole_rows import STEPS, Decoded, whole_rows
from .list_queries import slack_steps
from .sample import GOLDEN, mixed
from .threads import ordered_map

# Leading axes, a share of all numbers and at the most: within a small distance, and within a larger
# one, where few axes tell little.
AXES, FAR_AXES = (1 / 4, 32), (3 / 8, 48)
# Queries that these are found from.
FOR_AXES = 4096
# How they are found: axes beyond these, and passes over the rows.
SPARE, PASSES = 8, 2
# What rounding of the axes themselves may add to a distance.
ROUNDING = 1.01
# Numbers of the rows that are worked on while they lie in the cache.
PART = 1 << 18


def axes_of(dim: int, axes: tuple[float, int] = AXES) -> int:
    """How many leading axes are looked at of so many numbers."""
    share, most = axes
    return max(1, min(most, int(dim * share)))


def near_rows(
    features: Features,
    queries: np.ndarray,
    limit: float,
    ordinals: list[int],
    title: str,
    workers: int = 0,
    *,
    unit: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """All rows within a squared distance of some rows, and some a little beyond.

    Memory: the queries, and a block of 4,096 rows a thread.

    Parameters
    ----------
    features
        Rows of unit length, or of any but zero with `unit`.
    queries
        int64[q], row ids.
    limit
        On the squared distance. Rows are rounded, so some up to the square of
        sqrt(limit) + 2 sqrt(dim) / STEPS are found as well: who needs the last digit looks again.
    ordinals
        Shards to search.
    title
        Of the progress bar.
    unit
        Bring rows to unit length first.

    Returns
    -------
    query, row : int64[m]
        Row ids, the query itself left out.
    """
    found = [*_found(features, queries, limit, ordinals, title, workers, AXES, unit)]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    query, row, _ = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return query, row


@dataclass
class NearSample:
    """Some of the pairs that `near_rows` finds, and how many each stands for.

    Attributes
    ----------
    query, row
        int64[m], row ids, ascending.
    weight
        float64[m].
    """

    query: np.ndarray
    row: np.ndarray
    weight: np.ndarray


def near_sample(
    features: Features,
    queries: np.ndarray,
    limit: float,
    ordinals: list[int],
    title: str,
    workers: int = 0,
    *,
    most: int,
    wanted: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> NearSample:
    """The nearest pairs of all that are near, and a random sample of the others.

    The nearest count for themselves, each of the sample for as many as it was drawn from. What is
    drawn depends on the row ids alone. Memory: 24 bytes for 9 times `most` pairs.

    Parameters
    ----------
    features, queries, limit, ordinals, title
        As in `near_rows`, of rows of unit length.
    most
        Nearest pairs, and pairs of the sample, at the most.
    wanted
        Which of some pairs (queries, rows) count: bool[n].
    """
    count, nearest, drawn = 0, _Least(most), _Least(most)
    found = _found(features, queries, limit, ordinals, title, workers, FAR_AXES, False)
    for query, row, apart in _together(found, most):
        some = wanted(query, row)
        query, row, apart = query[some], row[some], apart[some]
        count += len(query)
        nearest.add(apart, query, row)
        drawn.add(mixed(query.astype(np.uint64) * GOLDEN + row.astype(np.uint64)), query, row)
    near, some = nearest.pairs(), drawn.pairs()
    both = np.concatenate([near, some], axis=1)
    ends, place = np.unique(both, axis=1, return_index=True)
    others = place >= near.shape[1]
    share = (count - near.shape[1]) / max(int(others.sum()), 1)
    return NearSample(ends[0], ends[1], np.where(others, share, 1.0))


def _together(
    parts: Iterator[tuple[np.ndarray, ...]], size: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """The same, as longer arrays."""
    waiting: list[tuple[np.ndarray, ...]] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part[0])
        if held >= size:
            yield tuple(np.concatenate(own) for own in zip(*waiting, strict=True))
            waiting, held = [], 0
    if waiting:
        yield tuple(np.concatenate(own) for own in zip(*waiting, strict=True))


class _Least:
    """The pairs with the least keys of all that are added; equal keys go by the row ids."""

    def __init__(self, most: int) -> None:
        self.most, self._size = most, 0
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, key: np.ndarray, query: np.ndarray, row: np.ndarray) -> None:
        """Add some."""
        self._parts.append((key, query, row))
        self._size += len(key)
        if self._size > 4 * self.most:
            self._cut()

    def _cut(self) -> None:
        key, query, row = (np.concatenate(p) for p in zip(*self._parts, strict=True))
        order = np.lexsort((row, query, key))[: self.most]
        self._parts, self._size = [(key[order], query[order], row[order])], len(order)

    def pairs(self) -> np.ndarray:
        """int64[2, m]: queries and rows."""
        if not self._parts:
            return np.empty((2, 0), np.int64)
        self._cut()
        return np.stack(self._parts[0][1:])


def _found(
    features: Features,
    queries: np.ndarray,
    limit: float,
    ordinals: list[int],
    title: str,
    workers: int,
    axes: tuple[float, int],
    unit: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Query, row and squared distance, block by block."""
    if not len(queries):
        return
    near = NearRows(take_rows(features, queries, workers), limit, axes, workers, unit=unit)

    def work(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        query, row, apart = near.of(block)
        return queries[query], row, apart

    yield from search_blocks(features, ordinals, work, title, workers)


class NearRows:
    """Rows that others are near to.

    Memory: beside the rows, two bytes a number.

    Parameters
    ----------
    rows
        float16 or float32[q, dim], one or more; of unit length, or of any but zero with `unit`.
    limit
        As in `near_rows`.
    axes
        `AXES` or `FAR_AXES`.
    unit
        Bring rows to unit length first.
    """

    def __init__(
        self,
        rows: np.ndarray,
        limit: float,
        axes: tuple[float, int],
        workers: int = 0,
        *,
        unit: bool = False,
    ) -> None:
        self.count, dim, self.unit = len(rows), rows.shape[1], unit
        some = _rows(rows[:: -(-len(rows) // FOR_AXES)], unit)
        mean = some.mean(0, keepdims=True)
        leading = _leading_axes(some - mean, axes_of(dim, axes))
        self.axes = Axes(leading, scale_of(some - mean, leading))
        self.origin = self.axes.project(mean)[0]
        # Parts of whole blocks: the last one alone is filled up.
        parts = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        whole = np.concatenate([*ordered_map(lambda part: _whole(part, unit), parts, workers)])
        short = self.axes.coordinates(self.axes.project_whole(whole, len(rows)), self.origin)
        # Whole rows and whole coordinates are off by half a step, of either row.
        apart = ROUNDING * (limit**0.5 + rounding(dim)) + self.axes.width**0.5 / self.axes.scale
        bound = -short.half - np.float32(0.5 * self.axes.steps(apart**2))
        self.asked, self.whole = as_queries(short, bound), whole
        self.error = np.zeros(len(rows), np.int64)
        self.most = slack_steps((limit**0.5 + rounding(dim)) ** 2)

    def of(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is near them in a block of rows of the same kind.

        Returns
        -------
        row, other : int64[m]
            Positions in the rows and in the block.
        apart : float32[m]
            Squared distance, as far as rounded rows tell it.
        """
        found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        size = max(1, PART // block.shape[1])
        for start in range(0, len(block), size):
            part = block[start : start + size]
            own = _whole(part, self.unit)
            listed = self.axes.coordinates(self.axes.project_whole(own, len(part)), self.origin)
            stop = np.full(self.count, len(part))
            operands = self.whole, Decoded.all(own), self.error, self.most
            for hits in scanned(panels(listed), self.asked, stop, operands):
                row, other = hits.query.astype(np.int64), hits.row.astype(np.int64)
                found.append((row, other + start, hits.excess))
        row, other, apart = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return row, other, apart


def _leading_axes(rows: np.ndarray, width: int) -> np.ndarray:
    """Axes of about the largest variance, float32[dim, width]: others would do, less quickly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        most = min(*rows.shape, width + SPARE)
        _, _, axes = torch.svd_lowrank(torch.from_numpy(rows), most, PASSES)
    return axes[:, :width].numpy()


def rounding(dim: int) -> float:
    """What rounding both rows may add to a distance (not squared), or take off it."""
    return dim**0.5 / STEPS


def _rows(block: np.ndarray, unit: bool) -> np.ndarray:
    wide = as_float32(block)
    return normalised(wide) if unit else wide


def _whole(block: np.ndarray, unit: bool) -> np.ndarray:
    """The same as `whole_rows` gives them."""
    if not float_rows.readable(block):
        return whole_rows(_rows(block, unit))
    return float_rows.unit_whole(block, STEPS)[0] if unit else float_rows.whole(block, STEPS)
