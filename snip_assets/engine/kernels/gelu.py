"""GELU between two layers of a net in whole numbers, in one pass with what these ask for.

GELU(x) = x / 2 (1 + erf(x / sqrt 2)). A polynomial stands for erf, so that 16 numbers at a time go
from one layer's products to their GELU and to its length without a library's passes over memory
in between: a block goes through the whole net in seven eighths of the time (a Xeon with AMX).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils

from .float_rows import row_of, scaled
from .vectors import FLOATS, WIDTH, arrays, clamped, constant, fma, intrinsic, load, same, total
from .whole_rows import room

# erf(x / sqrt 2) / x for |x| <= EDGE, by powers of 2 (x / EDGE)^2 - 1: times x it is off by 3.1e-8
# at the most (least squares, reweighted until the largest error was least, as Lawson did). Beyond,
# erf stays what it is at the edge. GELU is off by 2e-7 max(1, |x|) at the most, as torch's is.
EDGE = 5.25
ERF = (
    *(0.269318692, -0.13425363, 0.0992915714, -0.0795268291, 0.0640628809),
    *(-0.0500838657, 0.0370772949, -0.0255505005, 0.0168357441, -0.0108970398),
    *(0.00578471903, -0.00207906907, 0.00132946727, -0.00131316769, 0.000479899379),
)


def _gelu(builder: Any, value: Any) -> Any:
    near = clamped(builder, value, same(EDGE))
    square = fma(builder, builder.fmul(near, near), same(2 / EDGE**2), same(-1))
    factor = same(ERF[-1])
    for power in reversed(ERF[:-1]):
        factor = fma(builder, factor, square, same(power))
    half = builder.fmul(value, same(0.5))
    return fma(builder, half, builder.fmul(near, factor), half)


@intrinsic
def _activate(typing_context: Any, rows: Any, row: Any) -> Any:
    """GELU of a row of float32[n, 16 k], in its place; the sum of its squares."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (array,) = arrays(context, builder, signature, arguments, 0)
        start, count = row_of(builder, array, arguments[1])
        sums = cgutils.alloca_once_value(builder, same(0))
        with cgutils.for_range(builder, count) as loop:
            place = builder.gep(start, [builder.mul(loop.index, constant(WIDTH))])
            value = _gelu(builder, load(builder, place, FLOATS))
            builder.store(value, builder.bitcast(place, FLOATS.as_pointer()), align=4)
            builder.store(fma(builder, value, value, builder.load(sums)), sums)
        return total(builder, builder.load(sums))

    return types.float32(rows, types.int64), generate


@njit(nogil=True, cache=True)
def _gelu_unit_whole(rows, steps, lengths, out):
    for i in range(rows.shape[0]):
        lengths[i] = np.sqrt(_activate(rows, i))
        if lengths[i] > 0:
            scaled(rows, i, steps / lengths[i], steps, out)


def gelu_unit_whole(rows: np.ndarray, steps: float) -> tuple[np.ndarray, np.ndarray]:
    """GELU of rows, of unit length, rounded to steps.

    Parameters
    ----------
    rows
        float32[n, 16 k], C order; receives their GELU.

    Returns
    -------
    whole
        As `whole_rows` gives them; of rows that have no length, anything.
    lengths : float32[n]
        Of the GELU.
    """
    lengths, out = np.empty(len(rows), np.float32), room(*rows.shape)
    _gelu_unit_whole(rows, np.float32(steps), lengths, out)
    return out, lengths
