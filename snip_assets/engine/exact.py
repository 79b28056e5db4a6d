"""Exact search among rows in memory."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from .features import BLOCK
from .neighbours import AXES, NearRows, rounding
from .threads import ordered_map


@njit(nogil=True, cache=True, fastmath={"nsz", "reassoc", "contract"})
def _decide(x, one, other, limit, near):
    """Which of some pairs are within a squared distance, of those that are not known to be."""
    for k in range(len(near)):
        if not near[k]:
            total = 0.0
            for d in range(x.shape[1]):
                apart = np.float64(x[one[k], d]) - np.float64(x[other[k], d])
                total += apart * apart
            near[k] = total <= limit


def exact_pairs(
    x: np.ndarray,
    queries: np.ndarray,
    limit: float,
    workers: int = 0,
    axes: tuple[float, int] = AXES,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (a query, another row) within a squared distance, by exact search.

    Parameters
    ----------
    x
        float32[n, dim], unit length.
    queries
        int64[q], positions, one or more.
    axes
        See `neighbours.NearRows`.

    Returns
    -------
    later, earlier : int64[m]
        Positions, each pair once, ascending.
    """
    near = NearRows(x[queries], limit, axes, workers)
    # Squared distances of rounded rows that leave a pair in doubt.
    sure = max(0.0, limit**0.5 - rounding(x.shape[1])) ** 2

    def work(start: int) -> np.ndarray:
        query, row, apart = near.of(x[start : start + BLOCK])
        one, other = queries[query], row + start
        kept = apart <= sure
        _decide(x, one, other, limit, kept)
        kept &= one != other
        one, other = one[kept], other[kept]
        return np.maximum(one, other) * len(x) + np.minimum(one, other)

    found = [*ordered_map(work, range(0, len(x), BLOCK), workers)]
    return np.divmod(np.unique(np.concatenate(found)), len(x))


def count_near(x: np.ndarray, queries: np.ndarray, limit: float, workers: int = 0) -> int:
    """How many rows are within a squared distance of some rows, these themselves counted.

    Parameters
    ----------
    x, queries
        As in `exact_pairs`.
    """
    columns, floor = torch.from_numpy(x).T, 1 - limit / 2

    def work(part: np.ndarray) -> int:
        return int(((torch.from_numpy(x[part]) @ columns) >= floor).sum())

    return sum(
        ordered_map(work, (queries[i : i + 64] for i in range(0, len(queries), 64)), workers)
    )


def nearest_other(
    x: np.ndarray, queries: np.ndarray, workers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other row of some rows.

    Parameters
    ----------
    x, queries
        As in `exact_pairs`; two rows or more.

    Returns
    -------
    other : int64[q]
        Positions.
    distance : float32[q]
        Squared.
    """
    columns = torch.from_numpy(x).T

    def work(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = np.arange(len(part))
        score = (torch.from_numpy(x[part]) @ columns).numpy()
        score[own, part] = -np.inf
        other = score.argmax(1)
        return other, 2 - 2 * score[own, other]

    blocks = (queries[i : i + 64] for i in range(0, len(queries), 64))
    other, distance = zip(*ordered_map(work, blocks, workers), strict=True)
    return np.concatenate(other), np.concatenate(distance)


def sum_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distance of each row of one to that of the other: float32[n]."""
    out = np.empty(len(a), np.float32)
    for start in range(0, len(a), 1 << 16):
        part = slice(start, start + (1 << 16))
        out[part] = ((a[part] - b[part]) ** 2).sum(1)
    return out
