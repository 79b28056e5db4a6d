"""Leading axes of the residuals, in whole numbers.

The join preselects on a few leading axes with a matrix product. Its sums must not depend on the
block that a row is in, nor on the machine, or else the pairs would. So coordinates are rounded to
whole numbers, small enough that every sum is exact in 16 bits (see `byte_products`), and in float32
all the more: then any order of summation, on a processor or a GPU, gives the same number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .codec import Codec
from .kernels.aligned import aligned
from .kernels.byte_products import BALL, TOP, Short, as_steps, fill, panels, panels_room
from .kernels.registers import LANES
from .kernels.vectors import WIDTH as VECTOR
from .kernels.whole_rows import STEPS, column_panels, products, whole_rows
from .kernels.word_sums import rounded_difference, rounded_sum

# |x| <= 1 (a little more where decoded), so sums stay below 2^13 * 2^10 * a little < 2^24.
AXIS_STEPS = 1024.0


@njit(nogil=True, cache=True)
def _halved(row, norm):
    """Bring a row back into the ball, in whole steps; half its squared norm, negative."""
    if norm > np.float32(BALL * BALL):
        factor, norm = np.float32(BALL) / np.sqrt(norm), np.float32(0.0)
        for d in range(len(row)):
            step = np.trunc(np.float32(row[d]) * factor)
            row[d] = np.int8(step)
            norm += step * step
    return -np.floor(np.float32(0.5) * norm)


@njit(nogil=True, cache=True)
def _steps(projected, origin, factor, out, half):
    """Whole coordinates of projected - origin."""
    top = np.float32(TOP)
    for i in range(projected.shape[0]):
        half[i] = _halved(out[i], rounded_difference(projected, origin, i, factor, top, out))


@njit(nogil=True, cache=True)
def _code_steps(codes, book, factor, out, half):
    """The same of codes."""
    top = np.float32(TOP)
    for i in range(codes.shape[0]):
        half[i] = _halved(out[i], rounded_sum(book, codes, i, factor, top, out))


@njit(nogil=True, cache=True)
def _code_panels(codes, book, factor, steps, words, half, out, starts):
    """Panels of codes; the steps of one stay in the nearest cache meanwhile."""
    for panel in range(out.shape[0]):
        here = codes[panel * LANES : (panel + 1) * LANES]
        _code_steps(here, book, factor, steps, half)
        own = slice(panel, panel + 1)
        fill(words[: len(here)], steps, half, TOP, out[own], starts[own])


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
        self._wide = -(-self.width // VECTOR) * VECTOR
        self._ones = np.ones(self._panels.shape[0] * LANES, np.float32)
        self._factor = np.float32(self.scale / (STEPS * AXIS_STEPS))

    def steps(self, distance: float) -> float:
        """A squared distance in squared steps, rounded down to a whole number."""
        return float(np.floor(distance * self.scale**2))

    def project(self, x: np.ndarray) -> np.ndarray:
        """Products of rounded rows and rounded axes, exact: float32[n, filled width].

        Parameters
        ----------
        x
            float32[n, dim], of about unit length or less.
        """
        return self.project_whole(whole_rows(x), len(x))

    def project_whole(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The same for the first rows of what `whole_rows` gives."""
        out = products(self._panels, rows, self._ones, np.zeros_like(self._ones))
        return np.ascontiguousarray(out[:count, : self._wide])

    def coordinates(self, projected: np.ndarray, origin: np.ndarray | None = None) -> Short:
        """Whole coordinates of projected vectors, as seen from a projected origin."""
        origin = np.zeros(self._wide, np.float32) if origin is None else origin
        out = self._room(len(projected))
        _steps(projected, origin, self._factor, out.steps, out.half)
        return out

    def _room(self, rows: int) -> Short:
        steps = np.empty((rows, self._wide), np.int8)
        return Short(steps, np.empty(rows, np.float32), self.width)

    def book(self, codec: Codec) -> np.ndarray | None:
        """The words of a product quantiser, projected: float32[M, 256, filled width]."""
        if codec.book is None:
            return None
        parts, words, size = codec.book.shape
        wide = np.zeros((parts, words, parts, size), np.float32)
        wide[np.arange(parts), :, np.arange(parts)] = codec.book
        return aligned(self.project(wide.reshape(parts * words, -1)).reshape(parts, words, -1))

    def decode(self, codec: Codec, book: np.ndarray | None, codes: np.ndarray) -> Short:
        """Coordinates of the residuals that codes stand for.

        Parameters
        ----------
        book
            What `book` gives.
        codes
            uint8[n, code size], C order.
        """
        if book is None:
            return self.coordinates(self.project(codec.decode(codes)))
        out = self._room(len(codes))
        _code_steps(codes, book, self._factor, out.steps, out.half)
        return out

    def decoded_panels(
        self, codec: Codec, book: np.ndarray | None, codes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `panels` makes of what `decode` gives."""
        if book is None:
            return panels(self.decode(codec, book, codes))
        some = self._room(LANES)
        out, starts = panels_room(len(codes), some.groups)
        operands = some.steps, some.words, some.half, out, starts
        _code_panels(codes, book, self._factor, *operands)
        return as_steps(out), starts


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
