"""Leading axes of the residuals, in whole numbers.

The join preselects on a few leading axes with a matrix product. Its sums must not depend on the
block that a row is in, nor on the machine, or else the pairs would. So coordinates are rounded to
whole numbers, small enough that every sum is exact in 16 bits (see `byte_kernels`), and in float32
all the more: then any order of summation, on a processor or a GPU, gives the same number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .byte_kernels import BALL, TOP
from .codec import Codec
from .kernels import LANES
from .whole_rows import STEPS, column_panels, products, whole_rows

# |x| <= 1 (a little more where decoded), so sums stay below 2^13 * 2^10 * a little < 2^24.
AXIS_STEPS = 1024.0

# Sums of whole numbers: the compiler may order them as it likes.
_FLAGS = {"nnan", "nsz", "reassoc"}


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _rounded(row, width, origin, factor):
    """Round `(row - origin) * factor` in place, cut to the largest coordinate; its squared norm."""
    top, total = np.float32(TOP), np.float32(0.0)
    for d in range(width):
        step = min(max(np.rint((row[d] - origin[d]) * factor), -top), top)
        row[d] = step
        total += step * step
    return total


@njit(nogil=True, cache=True)
def _shortened(row, width, total):
    """Bring a row back into the ball, in whole steps; its squared norm."""
    factor, total = np.float32(BALL) / np.sqrt(total), np.float32(0.0)
    for d in range(width):
        row[d] = np.trunc(row[d] * factor)
        total += row[d] * row[d]
    return total


@njit(nogil=True, cache=True)
def _finish(row, width, origin, factor):
    """Round a row, bring it into the ball, and note half its squared norm, negative, in the end."""
    total = _rounded(row, width, origin, factor)
    if total > np.float32(BALL * BALL):
        total = _shortened(row, width, total)
    row[width] = -np.floor(np.float32(0.5) * total)


@njit(nogil=True, cache=True)
def _steps(projected, origin, factor, out):
    """Whole coordinates of projected - origin; half the squared norms, negative, in the end."""
    width = projected.shape[1]
    for i in range(projected.shape[0]):
        row = out[i]
        row[:width] = projected[i]
        _finish(row, width, origin, factor)


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _code_sums(codes, book, row):
    """Sum of the words of a row; `book` is M x 256 x width, M a multiple of 4."""
    width = book.shape[2]
    # Four words at a time: a sum is stored and loaded again that much less.
    for m in range(0, codes.shape[0], 4):
        a, b, c, e = (
            book[m, codes[m]],
            book[m + 1, codes[m + 1]],
            book[m + 2, codes[m + 2]],
            book[m + 3, codes[m + 3]],
        )
        if m == 0:
            for d in range(width):
                row[d] = (a[d] + b[d]) + (c[d] + e[d])
        else:
            for d in range(width):
                row[d] += (a[d] + b[d]) + (c[d] + e[d])


@njit(nogil=True, cache=True)
def _code_steps(codes, book, origin, factor, out):
    """The same of codes."""
    width = book.shape[2]
    for i in range(codes.shape[0]):
        row = out[i]
        _code_sums(codes[i], book, row)
        _finish(row, width, origin, factor)


class Axes:
    """Maps vectors and codes onto whole coordinates on the leading axes.

    Parameters
    ----------
    axes
        float32[dim, width], orthonormal columns, width <= 64.
    scale
        Steps a unit of length. Coordinates beyond `TOP` steps are cut to it, and rows longer than
        `BALL` shortened to it: neither adds to a distance.
    """

    def __init__(self, axes: np.ndarray, scale: float) -> None:
        self.axes, self.scale = np.ascontiguousarray(axes, np.float32), float(scale)
        self.width = axes.shape[1]
        self._panels = column_panels(np.rint(self.axes.T * np.float32(AXIS_STEPS)))
        self._ones = np.ones(self._panels.shape[0] * LANES, np.float32)
        self._zero = np.zeros(self.width, np.float32)
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
            The last column is -1/2 of the squared norm, rounded up to a whole number: a product
            with a row that ends in 1 then tells the distance, but for that row's own norm.
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
            return self.coordinates(self.project(codec.decode(codes)), self._zero)
        out = np.empty((len(codes), self.width + 1), np.float32)
        _code_steps(codes, book, self._zero, self._factor, out)
        return out


def leading_axes(residuals: np.ndarray, width: int) -> np.ndarray:
    """The principal axes of residuals, float32[dim, width], largest variance first."""
    wide = residuals.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    axes = vectors[:, ::-1][:, :width]
    sign = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.ascontiguousarray((axes * sign).astype(np.float32))


def scale_of(residuals: np.ndarray, axes: np.ndarray) -> float:
    """Steps a unit of length, so that (nearly) none of such residuals is cut."""
    short = residuals @ axes
    largest, longest = (
        np.abs(short).max(initial=0.0),
        np.linalg.norm(short, axis=1).max(initial=0.0),
    )
    return float(min(TOP / max(1.05 * largest, 1e-3), BALL / max(1.05 * longest, 1e-3)))
