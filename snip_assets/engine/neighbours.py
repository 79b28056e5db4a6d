"""All rows near some rows, by exact search.

As in the join, whole coordinates on a few leading axes throw out nearly everything. A distance on
some axes never exceeds that on all, so nothing is lost; the whole distance then decides. For a few
hundred queries that is several times faster than the product of all queries with all rows.
"""

from __future__ import annotations

import numpy as np

from . import half_rows
from .axes import Axes, leading_axes, scale_of
from .byte_kernels import panels
from .byte_kernels import queries as as_queries
from .features import Features, as_float32, search_blocks, take_rows
from .join import in_steps, scanned_by
from .whole_rows import STEPS, Decoded, whole_rows

# Leading axes: one for so many numbers, and at the most.
NUMBERS_PER_AXIS, MOST_AXES = 4, 32
# Queries that these are found from.
FOR_AXES = 4096
# What rounding of the axes themselves may add to a distance.
ROUNDING = 1.01
# Numbers of the rows that are worked on while they lie in the cache.
PART = 1 << 18


def axes_of(dim: int) -> int:
    """How many leading axes are looked at of so many numbers."""
    return max(1, min(MOST_AXES, dim // NUMBERS_PER_AXIS))


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
    none = np.empty(0, np.int64)
    if not len(queries):
        return none, none
    rows = take_rows(features, queries, workers)
    dim = rows.shape[1]
    some = _rows(rows[:: -(-len(rows) // FOR_AXES)], unit)
    mean = some.mean(0, keepdims=True)
    leading = leading_axes(some - mean, axes_of(dim))
    axes = Axes(leading, scale_of(some - mean, leading))
    origin = axes.project(mean)[0]
    whole = _whole(rows, unit)
    del rows
    short = axes.coordinates(axes.project_whole(whole, len(queries)), origin)
    # Whole coordinates are off by half a step, of either row.
    apart = ROUNDING * limit**0.5 + axes.width**0.5 / axes.scale
    bound = -short.half - np.float32(0.5 * axes.steps(apart**2))
    asked = as_queries(short, bound)
    error, most = in_steps(np.zeros(len(queries)), limit + _rounding(limit, dim))

    def work(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [(none, none)]
        size = max(1, PART // block.shape[1])
        for start in range(0, len(block), size):
            part = block[start : start + size]
            own = _whole(part, unit)
            listed = axes.coordinates(axes.project_whole(own, len(part)), origin)
            stop = np.full(len(queries), len(part))
            for hits in scanned_by(
                panels(listed), asked, stop, (whole, Decoded.all(own), error, most)
            ):
                found.append((queries[hits.query], hits.row.astype(np.int64) + start))
        query, row = zip(*found, strict=True)
        return np.concatenate(query), np.concatenate(row)

    return search_blocks(features, ordinals, work, title, workers)


def _rounding(limit: float, dim: int) -> float:
    """What rounding both rows may take off a squared distance."""
    most = dim**0.5 / STEPS
    return 2 * limit**0.5 * most + most**2


def _rows(block: np.ndarray, unit: bool) -> np.ndarray:
    wide = as_float32(block)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) if unit else wide


def _whole(block: np.ndarray, unit: bool) -> np.ndarray:
    """The same as `whole_rows` gives them."""
    if not half_rows.readable(block):
        return whole_rows(_rows(block, unit))
    return half_rows.unit_whole(block, STEPS)[0] if unit else half_rows.whole(block, STEPS)
