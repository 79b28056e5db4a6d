"""The product of the join: short rows in whole numbers of 8 bits, compared while in registers.

Only one bit a pair leaves. With VNNI four products of 8 bits are added to a sum in one instruction.
Elsewhere two products and their sum are one, on twice as many numbers as with 16 bits, and sums
stay within 16 bits: in all, half the instructions. That needs small coordinates (`TOP`) and short
rows (`BALL`). Both are exact, so they find the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from .aligned import room
from .kernels import LANES, QUERIES
from .vectors import (
    FEATURES,
    I32,
    INTS,
    SHORTS,
    WIDTH,
    arrays,
    constant,
    load,
    plus_byte_products,
    splat,
    sums_of_byte_products,
)

# Type checkers see the function that makes the code, and not the one that Numba calls.
intrinsic: Any = numba_intrinsic

# Largest coordinate, in steps: queries are shifted by it, and 2 * (2 TOP) * TOP < 2^15.
TOP = 90
# Largest length of a row, in steps: product and half of the squared norm stay within 16 bits, for
# 1.5 BALL^2 < 2^15; sums on the way there may leave them, as they come back.
BALL = 146
# Coordinates of a row that one instruction reads, and what it sums in.
TOGETHER, SUMS = (4, INTS) if "avx512vnni" in FEATURES else (2, SHORTS)
BYTES = ir.VectorType(ir.IntType(8), 4 * WIDTH)
_SUM = np.int32 if SUMS is INTS else np.int16
_LOWEST, _HIGHEST = -(1 << 15), (1 << 15) - 1
# Coordinates that one instruction reads, as one number.
_WORD = np.uint32 if TOGETHER == 4 else np.uint16


class Short(NamedTuple):
    """Rows in whole steps on a few axes.

    Attributes
    ----------
    steps
        int8[n, multiple of 4], C order, at most `TOP` from 0; 0 beyond the axes.
    half
        float32[n], -1/2 of the squared norm, rounded up to a whole number: a product plus that of
        both rows tells their distance.
    width
        Number of axes.
    """

    steps: np.ndarray
    half: np.ndarray
    width: int

    @property
    def groups(self) -> int:
        """Groups of numbers that one instruction reads."""
        return -(-self.width // TOGETHER)


def _plus(builder: Any, sums: Any, query: Any, row: Any) -> Any:
    if SUMS is INTS:
        return plus_byte_products(builder, sums, query, row)
    return builder.add(sums, sums_of_byte_products(builder, query, row))


def _above(builder: Any, sums: list[Any], least: Any) -> Any:
    """Which sums are > the least, as the bits of a uint32."""
    word, kind = ir.Constant(I32, 0), ir.IntType(SUMS.count)
    for k, place in enumerate(sums):
        bits = builder.bitcast(builder.icmp_signed(">", builder.load(place), least), kind)
        wide = builder.zext(bits, I32) if SUMS.count < LANES else bits
        word = builder.or_(word, builder.shl(wide, ir.Constant(I32, k * SUMS.count)))
    return word


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
        rows, begins, block, floors, out = arrays(
            context, builder, signature, arguments, 0, 1, 3, 5, 6
        )
        groups = builder.extract_value(block.shape, 1)
        places = [builder.add(arguments[4], constant(k)) for k in range(QUERIES)]
        size = builder.mul(groups, constant(4))
        own = [builder.gep(block.data, [builder.mul(place, size)]) for place in places]
        lanes = builder.mul(arguments[2], constant(LANES))
        step = constant(LANES * TOGETHER)
        line = builder.gep(rows.data, [builder.mul(builder.mul(arguments[2], groups), step)])
        starts = [
            load(builder, builder.gep(begins.data, [builder.add(lanes, constant(first))]), SUMS)
            for first in range(0, LANES, SUMS.count)
        ]
        scores = [[cgutils.alloca_once_value(builder, s) for s in starts] for _ in places]
        with cgutils.for_range(builder, groups) as loop:
            here = builder.gep(line, [builder.mul(loop.index, step)])
            row = [
                load(builder, builder.gep(here, [constant(BYTES.count * k)]), BYTES)
                for k in range(len(starts))
            ]
            for query, sums in zip(own, scores, strict=True):
                place = builder.gep(query, [builder.mul(loop.index, constant(4))])
                four = builder.load(builder.bitcast(place, I32.as_pointer()), align=1)
                value = builder.bitcast(splat(builder, four), BYTES)
                for part, so_far in zip(row, sums, strict=True):
                    builder.store(_plus(builder, builder.load(so_far), value, part), so_far)
        for k, (place, sums) in enumerate(zip(places, scores, strict=True)):
            least = splat(builder, builder.load(builder.gep(floors.data, [place])), SUMS.count)
            there = builder.gep(out.data, [constant(k)])
            builder.store(_above(builder, sums, least), there)
        return context.get_dummy_value()

    arguments = (panels, starts, types.int64, queries, types.int64, floor, masks)
    return types.void(*arguments), generate


@njit(nogil=True, cache=True)
def _fill(words, steps, half, top, out, starts):
    for i in range(words.shape[0]):
        panel, lane = i // LANES, i % LANES
        total = 0
        for d in range(steps.shape[1]):
            total += steps[i, d]
        # Takes back that queries are shifted.
        starts[panel, lane] = np.int64(half[i]) - top * total
        for group in range(out.shape[1]):
            out[panel, group, lane] = words[i, group]


def panels(rows: Short) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `compare` reads them, filled up with zeros.

    Returns
    -------
    int8[p, groups, LANES, TOGETHER], p = ceil(n / LANES)
        Coordinates.
    int32[p, LANES] or int16[p, LANES]
        What sums start from, modulo 2^32 or 2^16.
    """
    words = rows.steps.view(_WORD)
    count = -(-len(words) // LANES)
    out = room((count, rows.groups, LANES), _WORD)
    out[-1:] = 0
    starts = np.zeros((count, LANES), _SUM)
    _fill(words, rows.steps, rows.half, TOP, out, starts)
    return out.view(np.int8).reshape(*out.shape, TOGETHER), starts


@njit(nogil=True, cache=True)
def _shift(steps, bound, top, own, floor):
    lowest, highest = np.float64(_LOWEST), np.float64(_HIGHEST)
    for i in range(steps.shape[0]):
        for d in range(steps.shape[1]):
            step = np.uint8(steps[i, d] + top)
            for first in range(0, 4, TOGETHER):
                own[i, d // TOGETHER, first + d % TOGETHER] = step
        least = np.ceil(np.float64(bound[i])) - 1.0
        floor[i] = min(max(least, lowest), highest)


def queries(rows: Short, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries as `compare` reads them: shifted, as one side of its products has no sign.

    Products are whole numbers, so >= a bound is > the whole number below it.

    Parameters
    ----------
    rows
        `half` is not read.
    bound
        float32[q]: least product less half of the squared norm of the other row.

    Returns
    -------
    uint8[q', groups, 4], int32[q'] or int16[q']
        Coordinates, twice where they are two together. q' is a multiple of `QUERIES`; what was
        added finds nothing.
    """
    steps = rows.steps[:, : rows.width]
    count = -(-len(steps) // QUERIES) * QUERIES
    own = np.zeros((count, rows.groups, 4), np.uint8)
    # No sum is greater: of rows that are not there, it may be anything.
    floor = np.full(count, np.iinfo(_SUM).max, _SUM)
    _shift(steps, bound, TOP, own, floor)
    return own, floor
