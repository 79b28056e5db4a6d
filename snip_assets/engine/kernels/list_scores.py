"""How near rows are to centroids, about, and how far off that is at most.

A score is the product of a row and a centroid, both less the mean of the centroids, less half of
the centroid's squared norm: the squared distance is the row's squared norm less twice the score.
Products are made in whole numbers, of 8 bits where VNNI multiplies four of them at a time, else of
16. What rounding adds is bounded by the norms of what was cut off, so no list that could be the
nearest is overlooked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from . import tiles
from .registers import AT_ONCE, LANES
from .vectors import FEATURES
from .whole_rows import FILL, column_panels

BYTES = "avx512vnni" in FEATURES
# Largest whole number, or largest length of a row: sums stay within 32 bits. And what makes a
# number of 8 bits one without a sign.
TOP = 127 if BYTES else 32_767
SHIFT = TOP if BYTES else 0
KIND: Any = np.uint8 if BYTES else np.int16
LOWEST = np.float32(-3e38)
# Above what rounding adds in float32 to scores and squared norms.
DOUBT = 1e-5
# Scores that stay in the cache: 128 KB.
ROOM = 1 << 15


@njit(nogil=True, cache=True, fastmath={"nsz", "reassoc", "contract"})
def _rounded(x, step, top, shift, out, lost, norm):
    """Whole steps of rows; squared norms of what is cut off, and of the rows."""
    for i in range(x.shape[0]):
        off, whole = np.float32(0.0), np.float32(0.0)
        for d in range(x.shape[1]):
            steps = min(max(np.rint(x[i, d] / step), -top), top)
            out[i, d] = np.int32(steps + shift)
            rest = x[i, d] - steps * step
            off += rest * rest
            whole += x[i, d] * x[i, d]
        lost[i], norm[i] = off, whole


def _steps(x: np.ndarray, shift: int, out: np.ndarray) -> tuple[np.float32, np.ndarray, np.ndarray]:
    """Write rows in whole steps; the step, and lengths of what is cut off and of the rows."""
    if BYTES:
        largest = max(x.max(initial=0.0), -x.min(initial=0.0))
    else:
        largest = np.sqrt(np.einsum("ij,ij->i", x, x).max(initial=0.0))
    step = np.float32(max(float(largest), 1e-30) / TOP)
    lost, norm = np.empty((2, len(x)), np.float32)
    _rounded(x, step, np.float32(TOP), np.float32(shift), out, lost, norm)
    return step, np.sqrt(lost), np.sqrt(norm)


class Rows(NamedTuple):
    """Some rows, as scores are computed from them.

    Attributes
    ----------
    panels, whole, scale, bias
        See `scaled_products`.
    norm
        float32[n]: squared norm of each row less the middle.
    error
        float32[n]: a score of the row is no further off.
    part
        Rows whose scores are held at once, a multiple of `AT_ONCE`.
    """

    panels: np.ndarray
    whole: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    norm: np.ndarray
    error: np.ndarray
    part: int


class Scorer:
    """Scores of rows against centroids.

    Parameters
    ----------
    centroids
        float32[lists, dim].

    Attributes
    ----------
    widest
        No two centroids are further apart.
    """

    def __init__(self, centroids: np.ndarray) -> None:
        self._middle = centroids.mean(0)
        around = centroids - self._middle
        whole = np.empty(around.shape, np.int16)
        self._step, lost, length = _steps(around, 0, whole)
        self._panels = column_panels(whole, np.int8 if BYTES else np.int16)
        self._lost, self._length = float(lost.max()), float((length + lost).max())
        self.widest = 2 * float(length.max())
        columns, self._count = self._panels.shape[0] * LANES, len(around)
        self._half, self._sums = np.full(columns, float(LOWEST)), np.zeros(columns)
        self._half[: len(around)] = -0.5 * (around.astype(np.float64) ** 2).sum(1)
        self._sums[: len(around)] = whole.sum(1, dtype=np.int64)

    def __call__(self, x: np.ndarray) -> Rows:
        """Prepare rows: float32[n, dim]."""
        around = x - self._middle
        padded = -(-len(x) // AT_ONCE) * AT_ONCE
        whole = np.zeros((padded, -(-x.shape[1] // FILL) * FILL), KIND)
        step, lost, length = _steps(around, SHIFT, whole)
        unit = float(step) * float(self._step)
        columns = len(self._half)
        # Takes back that rows are shifted.
        bias = (self._half - unit * SHIFT * self._sums).astype(np.float32)
        rounding = DOUBT + 2**-22 * float(np.abs(bias[: self._count]).max())
        error = lost * np.float32(self._length) + length * np.float32(self._lost)
        part = max(1, ROOM // (columns * AT_ONCE)) * AT_ONCE
        scale = np.full(columns, unit, np.float32)
        whole = whole[:, None] if tiles.LENT else whole
        return Rows(self._panels, whole, scale, bias, length**2, error + np.float32(rounding), part)
