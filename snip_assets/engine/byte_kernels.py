"""The product of the join: short rows in whole numbers of 8 bits, compared while in registers.

Only one bit a pair leaves. Two products of 8 bits and their sum are one instruction, on twice as
many numbers as with 16 bits, and sums stay within 16 bits: in all, half the instructions. That
needs small coordinates (`TOP`) and short rows (`BALL`). The code names no processor; LLVM finds the
instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from .aligned import zeros
from .kernels import LANES, QUERIES
from .vectors import I32, SHORTS, WIDTH, constant, load, splat, sums_of_byte_products

# Type checkers see the function that makes the code, and not the one that Numba calls.
intrinsic: Any = numba_intrinsic

# Largest coordinate, in steps: queries are shifted by it, and 2 * (2 TOP) * TOP < 2^15.
TOP = 90
# Largest length of a row, in steps: product and half of the squared norm stay within 16 bits, for
# 1.5 BALL^2 < 2^15; sums on the way there may leave them, as they come back.
BALL = 146
BYTES = ir.VectorType(ir.IntType(8), 4 * WIDTH)
_LOWEST, _HIGHEST = -(1 << 15), (1 << 15) - 1


@intrinsic
def compare(
    typing_context: Any,
    panels: Any,
    starts: Any,
    panel: Any,
    queries: Any,
    first: Any,
    floor: Any,
    masks: Any,
) -> Any:
    """Compare a block of queries with a panel of rows.

    Parameters
    ----------
    panels, starts
        What `panels` gives; `panel` is the one to use.
    queries, floor
        What `queries` gives; `QUERIES` of them from `first` on.
    masks
        uint32[QUERIES]; receives, for each query, the rows whose product less half of their
        squared norm is > its floor, as bits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, begins, block, floors, out = (
            context.make_array(signature.args[k])(context, builder, arguments[k])
            for k in (0, 1, 3, 5, 6)
        )
        pairs = builder.extract_value(block.shape, 1)
        places = [builder.add(arguments[4], constant(k)) for k in range(QUERIES)]
        size = builder.mul(pairs, constant(4))
        own = [builder.gep(block.data, [builder.mul(place, size)]) for place in places]
        lanes = builder.mul(arguments[2], constant(LANES))
        line = builder.gep(rows.data, [builder.mul(lanes, builder.mul(pairs, constant(2)))])
        start = load(builder, builder.gep(begins.data, [lanes]), SHORTS)
        scores = [cgutils.alloca_once_value(builder, start) for _ in places]
        with cgutils.for_range(builder, pairs) as loop:
            here = builder.gep(line, [builder.mul(loop.index, constant(2 * LANES))])
            row = load(builder, here, BYTES)
            for query, score in zip(own, scores, strict=True):
                place = builder.gep(query, [builder.mul(loop.index, constant(4))])
                four = builder.load(builder.bitcast(place, I32.as_pointer()), align=1)
                value = builder.bitcast(splat(builder, four), BYTES)
                product = sums_of_byte_products(builder, value, row)
                builder.store(builder.add(builder.load(score), product), score)
        for k, (place, score) in enumerate(zip(places, scores, strict=True)):
            least = splat(builder, builder.load(builder.gep(floors.data, [place])), LANES)
            bits = builder.icmp_signed(">", builder.load(score), least)
            there = builder.gep(out.data, [constant(k)])
            builder.store(builder.bitcast(bits, I32), there)
        return context.get_dummy_value()

    arguments = (panels, starts, types.int64, queries, types.int64, floor, masks)
    return types.void(*arguments), generate


@njit(nogil=True, cache=True)
def _fill(rows, top, out, starts):
    width = rows.shape[1] - 1
    for i in range(rows.shape[0]):
        panel, lane = i // LANES, i % LANES
        start = np.int64(rows[i, width])
        for d in range(width):
            step = np.int64(rows[i, d])
            out[panel, d // 2, lane, d % 2] = step
            # Takes back that queries are shifted.
            start -= top * step
        starts[panel, lane] = start


def panels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `compare` reads them, filled up with zeros.

    Parameters
    ----------
    rows
        float32[n, width + 1]: what `Axes.coordinates` gives.

    Returns
    -------
    int8[p, ceil(width / 2), LANES, 2], p = ceil(n / LANES)
        Coordinates, two by two.
    int16[p, LANES]
        What sums start from, modulo 2^16.
    """
    count, width = -(-len(rows) // LANES), rows.shape[1] - 1
    out = zeros((count, -(-width // 2), LANES, 2), np.int8)
    starts = np.zeros((count, LANES), np.int16)
    _fill(rows, TOP, out, starts)
    return out, starts


@njit(nogil=True, cache=True)
def _shift(short, bound, top, own, floor):
    lowest, highest = np.float64(_LOWEST), np.float64(_HIGHEST)
    for i in range(short.shape[0]):
        for d in range(short.shape[1] - 1):
            step = np.uint8(short[i, d] + top)
            own[i, d // 2, d % 2] = step
            own[i, d // 2, 2 + d % 2] = step
        least = np.ceil(np.float64(bound[i])) - 1.0
        floor[i] = np.int16(min(max(least, lowest), highest))


def queries(short: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries as `compare` reads them: shifted, as one side of its products has no sign.

    Products are whole numbers, so >= a bound is > the whole number below it.

    Parameters
    ----------
    short
        float32[q, width + 1]: what `Axes.coordinates` gives; the last column is not read.
    bound
        float32[q]: least product less half of the squared norm.

    Returns
    -------
    uint8[q', ceil(width / 2), 4], int16[q']
        Coordinates two by two, twice. q' is a multiple of `QUERIES`; what was added finds nothing.
    """
    count, width = -(-len(short) // QUERIES) * QUERIES, short.shape[1] - 1
    own = np.zeros((count, -(-width // 2), 4), np.uint8)
    floor = np.full(count, _HIGHEST, np.int16)
    _shift(short, bound, np.float32(TOP), own, floor)
    return own, floor
