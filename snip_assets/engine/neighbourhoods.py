"""Rows cut into neighbourhoods, which come into a batch of training together."""

from __future__ import annotations

import numpy as np
from numba import njit

from .kernels.registers import dot


@njit(nogil=True, cache=True)
def _halve(values, rows, low, high, middle):
    """Order values from low to high, and rows with them, until none before `middle` is larger."""
    while low < high - 1:
        pivot = values[(low + high) // 2]
        left, right = low, high - 1
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                rows[left], rows[right] = rows[right], rows[left]
                left, right = left + 1, right - 1
        # Those between are equal to the pivot.
        if middle <= right:
            high = right + 1
        elif middle >= left:
            low = left
        else:
            return


@njit(nogil=True, cache=True)
def _cut(x, size, drawn, rows, starts):
    """Order rows so that those of a neighbourhood are together; where each starts, how many."""
    values = np.empty(len(rows), np.float32)
    waiting, used, count = [(0, len(rows))], 0, 0
    while len(waiting) > 0:
        low, high = waiting.pop()
        if high - low <= size:
            starts[count] = low
            count += 1
            continue
        # Two rows that differ, if only in their places.
        first = int(drawn[used, 0] * (high - low))
        on = 1 + int(drawn[used, 1] * (high - low - 1))
        used += 1
        direction = x[rows[low + first]] - x[rows[low + (first + on) % (high - low)]]
        for k in range(low, high):
            values[k] = dot(x[rows[k]], direction)
        middle = (low + high) // 2
        _halve(values, rows, low, high, middle)
        waiting.append((middle, high))
        waiting.append((low, middle))
    return count


def neighbourhoods(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut rows into neighbourhoods of at most `size`: halves along random pairs of rows.

    Parameters
    ----------
    rows
        float32[n, d].

    Returns
    -------
    list of int64 arrays
        Positions; each comes once. Another generator gives other cuts, so that near rows which
        are parted in one epoch meet in another.
    """
    order = np.arange(len(rows))
    # Halves of more than `size` have more than half of that.
    most = len(rows) // max(1, (size + 1) // 2) + 1
    starts = np.empty(most, np.int64)
    count = _cut(np.ascontiguousarray(rows), size, rng.random((most, 2)), order, starts)
    return np.split(order, starts[1:count])
