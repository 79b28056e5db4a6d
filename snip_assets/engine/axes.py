"""Leading axes of the residuals, in whole numbers.

The join preselects on a few leading axes with a matrix product. Its sums must not depend on the
block that a row is in, nor on the machine, or else the pairs would. So coordinates are rounded to
whole numbers, small enough that float32 holds every partial sum of a product exactly: then any
order of summation, on a processor or a GPU, gives the same number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .codec import Codec
from .kernels import LANES
from .whole_rows import STEPS, column_panels, products, whole_rows

# |x| <= 1 (a little more where decoded), so sums stay below 2^13 * 2^10 * a little < 2^24.
AXIS_STEPS = 1024.0
# 64 axes * 255^2 and half of it once more: 6.3e6, halves are exact up to 2^23 = 8.4e6.
TOP = 255.0


# Sums of whole numbers: the compiler may order them as it likes.
_FLAGS = {"nnan", "nsz", "reassoc"}


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _steps(projected, origin, factor, out):
    """Whole coordinates of projected - origin; half the squared norms, negative, in the end."""
    top, width = np.float32(TOP), projected.shape[1]
    for i in range(projected.shape[0]):
        total = np.float32(0.0)
        for d in range(width):
            step = np.rint((projected[i, d] - origin[d]) * factor)
            step = min(max(step, -top), top)
            out[i, d] = step
            total += step * step
        out[i, width] = np.float32(-0.5) * total


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _code_steps(codes, book, factor, out):
    """The same of codes; `book` is M x 256 x width, M a multiple of 4."""
    top, width = np.float32(TOP), book.shape[2]
    for i in range(codes.shape[0]):
        row = out[i]
        # Four words at a time: a sum is stored and loaded again that much less.
        for m in range(0, codes.shape[1], 4):
            a, b = book[m, codes[i, m]], book[m + 1, codes[i, m + 1]]
            c, e = book[m + 2, codes[i, m + 2]], book[m + 3, codes[i, m + 3]]
            if m == 0:
                for d in range(width):
                    row[d] = (a[d] + b[d]) + (c[d] + e[d])
            else:
                for d in range(width):
                    row[d] += (a[d] + b[d]) + (c[d] + e[d])
        total = np.float32(0.0)
        for d in range(width):
            step = min(max(np.rint(row[d] * factor), -top), top)
            row[d] = step
            total += step * step
        row[width] = np.float32(-0.5) * total


class Axes:
    """Maps vectors and codes onto whole coordinates on the leading axes.

    Parameters
    ----------
    axes
        float32[dim, width], orthonormal columns, width <= 64.
    scale
        Steps a unit of length; coordinates beyond 255 steps are cut to 255.
    """

    def __init__(self, axes: np.ndarray, scale: float) -> None:
        self.axes, self.scale = np.ascontiguousarray(axes, np.float32), float(scale)
        self.width = axes.shape[1]
        self._panels = column_panels(np.rint(self.axes.T * np.float32(AXIS_STEPS)))
        self._ones = np.ones(self._panels.shape[0] * LANES, np.float32)
        self._factor = np.float32(self.scale / (STEPS * AXIS_STEPS))

    def steps(self, distance: float) -> float:
        """A squared distance in squared steps, rounded down to a whole number."""
        return float(np.floor(distance * self.scale**2))

    def project(self, x: np.ndarray) -> np.ndarray:
        """Products of rounded rows and rounded axes, exact: float32[n, width].

        Parameters
        ----------
        x
            float32[n, dim], of about unit length or less.
        """
        return self.project_whole(whole_rows(x), len(x))

    def project_whole(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The same for the first rows of what `whole_rows` gives."""
        out = products(self._panels, rows, self._ones, np.zeros_like(self._ones))
        return np.ascontiguousarray(out[:count, : self.width])

    def coordinates(self, projected: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Whole coordinates of projected vectors as seen from a projected origin.

        Returns
        -------
        float32[n, width + 1]
            The last column is -1/2 of the squared norm: a product with a row that ends in 1
            then gives the squared distance, but for that row's own norm.
        """
        out = np.empty((len(projected), self.width + 1), np.float32)
        _steps(projected, origin, self._factor, out)
        return out

    def book(self, codec: Codec) -> np.ndarray | None:
        """The words of a product quantiser, projected: float32[M, 256, width]."""
        if codec.book is None:
            return None
        parts, words, size = codec.book.shape
        wide = np.zeros((parts, words, parts, size), np.float32)
        wide[np.arange(parts), :, np.arange(parts)] = codec.book
        return self.project(wide.reshape(parts * words, -1)).reshape(parts, words, -1)

    def decode(self, codec: Codec, book: np.ndarray | None, codes: np.ndarray) -> np.ndarray:
        """Coordinates, as above, of the residuals that codes stand for.

        Parameters
        ----------
        book
            What `book` gives.
        codes
            uint8[n, code size], C order.
        """
        if book is None:
            origin = np.zeros(self.width, np.float32)
            return self.coordinates(self.project(codec.decode(codes)), origin)
        out = np.empty((len(codes), self.width + 1), np.float32)
        _code_steps(codes, book, self._factor, out)
        return out


def leading_axes(residuals: np.ndarray, width: int) -> np.ndarray:
    """The principal axes of residuals, float32[dim, width], largest variance first."""
    wide = residuals.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    axes = vectors[:, ::-1][:, :width]
    sign = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.ascontiguousarray((axes * sign).astype(np.float32))


def scale_of(residuals: np.ndarray, axes: np.ndarray) -> float:
    """Steps a unit of length, so that (nearly) no coordinate of such residuals is cut."""
    largest = float(np.abs(residuals @ axes).max(initial=0.0))
    return TOP / max(1.05 * largest, 1e-3)
