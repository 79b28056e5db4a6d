"""The product of the join: short rows in whole numbers of 8 bits, compared while in registers.

Only one bit a pair leaves. With VNNI four products of 8 bits are added to a sum in one instruction.
Elsewhere two products and their sum are one, on twice as many numbers as with 16 bits, and sums
stay within 16 bits: in all, half the instructions. That needs small coordinates (`TOP`) and short
rows (`BALL`). Tiles multiply 16 queries with a panel at once (see there), and their sums are
compared on their way through memory. All are exact, so they find the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from . import tiles
from .aligned import room
from .registers import AT_ONCE, LANES, PARTS, QUERIES
from .tiles import I8
from .vectors import (
    FEATURES,
    I32,
    I64,
    INTS,
    SHORTS,
    WIDTH,
    arrays,
    constant,
    intrinsic,
    load,
    plus_byte_products,
    splat,
    sums_of_byte_products,
)

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

    @property
    def words(self) -> np.ndarray:
        """The steps, those that one instruction reads as one number."""
        return self.steps.view(_WORD)


def _plus(builder: Any, sums: Any, query: Any, row: Any) -> Any:
    if SUMS is INTS:
        return plus_byte_products(builder, sums, query, row)
    return builder.add(sums, sums_of_byte_products(builder, query, row))


class _Operands(NamedTuple):
    """What `compare` reads and writes, as values of LLVM.

    Attributes
    ----------
    panel, starts
        Where the rows of the panel begin, and what their sums start from.
    queries, size
        Where queries begin, and how many bytes they are apart.
    groups
        Groups of numbers that one instruction reads, of each row and query.
    floors
        Of the first query.
    first, count
        Number of the first query, and how many there are.
    masks, numbers, found
        Where masks that are not 0 go, and the numbers of their queries; and how many there are.
    """

    panel: Any
    starts: Any
    queries: Any
    size: Any
    groups: Any
    floors: Any
    first: Any
    count: Any
    masks: Any
    numbers: Any
    found: Any

    @classmethod
    def of(cls, context: Any, builder: Any, signature: Any, arguments: Any) -> _Operands:
        """From the arguments of `compare`."""
        rows, starts, block, floors, masks, numbers = arrays(
            context, builder, signature, arguments, 0, 1, 3, 6, 7, 8
        )
        _, _, panel, _, first, last, *_ = arguments
        size = builder.extract_value(block.strides, 0)
        step = builder.extract_value(rows.strides, 0)
        return cls(
            builder.gep(rows.data, [builder.mul(panel, step)]),
            builder.gep(starts.data, [builder.mul(panel, constant(LANES))]),
            builder.gep(block.data, [builder.mul(first, size)]),
            size,
            builder.extract_value(rows.shape, 1),
            builder.gep(floors.data, [first]),
            first,
            builder.sub(last, first),
            masks.data,
            numbers.data,
            cgutils.alloca_once_value(builder, constant(0)),
        )

    def note(self, builder: Any, number: Any, sums: list[Any]) -> None:
        """Write which sums of a query are > its floor, if any are."""
        floor = splat(builder, builder.load(builder.gep(self.floors, [number])), SUMS.count)
        word, kind = ir.Constant(I32, 0), ir.IntType(SUMS.count)
        for k, value in enumerate(sums):
            bits = builder.bitcast(builder.icmp_signed(">", value, floor), kind)
            wide = builder.zext(bits, I32) if SUMS.count < LANES else bits
            word = builder.or_(word, builder.shl(wide, ir.Constant(I32, k * SUMS.count)))
        # Without a branch: where few masks are not 0, the processor cannot guess which.
        filled = builder.load(self.found)
        builder.store(word, builder.gep(self.masks, [filled]))
        own = builder.trunc(builder.add(self.first, number), I32)
        builder.store(own, builder.gep(self.numbers, [filled]))
        some = builder.icmp_unsigned("!=", word, ir.Constant(I32, 0))
        builder.store(builder.add(filled, builder.zext(some, I64)), self.found)


def _by_vectors(builder: Any, operands: _Operands) -> None:
    """`QUERIES` at a time, whose sums the registers hold."""
    step = constant(LANES * TOGETHER)
    places = range(0, LANES, SUMS.count)
    starts = [
        load(builder, builder.gep(operands.starts, [constant(place)]), SUMS) for place in places
    ]
    with cgutils.for_range_slice(builder, constant(0), operands.count, constant(QUERIES)) as (
        first,
        _,
    ):
        numbers = [builder.add(first, constant(k)) for k in range(QUERIES)]
        own = [
            builder.gep(operands.queries, [builder.mul(number, operands.size)])
            for number in numbers
        ]
        scores = [[cgutils.alloca_once_value(builder, s) for s in starts] for _ in own]
        with cgutils.for_range(builder, operands.groups) as loop:
            here = builder.gep(operands.panel, [builder.mul(loop.index, step)])
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
        for number, sums in zip(numbers, scores, strict=True):
            operands.note(builder, number, [builder.load(so_far) for so_far in sums])


def _by_tiles(builder: Any, operands: _Operands) -> None:
    """`tiles.ROWS` at a time."""
    line, half = constant(4 * LANES), constant(tiles.BYTES)
    whole, sums, rows, own = constant(tiles.ROWS), (0, 1), (2, 3), 4
    numbers = builder.mul(operands.groups, constant(4))
    panel = [(operands.groups, half)] * 2
    tiles.configure(builder, [*[(whole, half)] * 2, *panel, (whole, numbers)])
    starts = builder.bitcast(operands.starts, I8.as_pointer())
    for number, place in zip(rows, tiles.HALVES, strict=True):
        tiles.read(builder, number, builder.gep(operands.panel, [place]), line)

    def multiply(block: Any, room: Any) -> None:
        first = builder.mul(builder.mul(block, whole), operands.size)
        tiles.read(builder, own, builder.gep(operands.queries, [first]), operands.size)
        for number, row, place in zip(sums, rows, tiles.HALVES, strict=True):
            # Every row of the tile starts from the same numbers.
            tiles.read(builder, number, builder.gep(starts, [place]), constant(0))
            tiles.add_products(builder, number, own, row, "us")
        there = builder.bitcast(room, I8.as_pointer())
        for number, place in zip(sums, tiles.HALVES, strict=True):
            tiles.write(builder, number, builder.gep(there, [place]), line)

    def finish(block: Any, room: Any) -> None:
        first = builder.mul(block, whole)
        for k in range(tiles.ROWS):
            places = [builder.gep(room, [constant(PARTS * k + part)]) for part in range(PARTS)]
            values = [builder.load(place) for place in places]
            operands.note(builder, builder.add(first, constant(k)), values)

    blocks = builder.udiv(operands.count, whole)
    tiles.in_turns(builder, blocks, tiles.ROWS * PARTS, multiply, finish)


@intrinsic
def compare(
    typing_context: Any,
    panels: Any,
    starts: Any,
    panel: Any,
    queries: Any,
    first: Any,
    last: Any,
    floor: Any,
    masks: Any,
    numbers: Any,
) -> Any:
    """Compare some queries with a panel of rows.

    Parameters
    ----------
    panels, starts
        What `panels` gives; `panel` is the one to use.
    queries, floor
        What `queries` gives; those from `first` on, before `last` (another), at multiples of
        `AT_ONCE`.
    masks, numbers
        uint32 and int32[last - first, at least]; receive, for each query that has some, the rows
        whose product less half of their squared norm is > its floor, as bits, and its number.

    Returns
    -------
    int64
        How many queries have some.
    """
    found = _by_tiles if queries.ndim == 2 else _by_vectors

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands = _Operands.of(context, builder, signature, arguments)
        found(builder, operands)
        return builder.load(operands.found)

    some = types.int64, queries, types.int64, types.int64
    return types.int64(panels, starts, *some, floor, masks, numbers), generate


@njit(nogil=True, cache=True)
def fill(words, steps, half, top, out, starts):
    """Write rows into panels: their steps, and the same as words."""
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
    out, starts = panels_room(len(rows.half), rows.groups)
    fill(rows.words, rows.steps, rows.half, TOP, out, starts)
    return as_steps(out), starts


def panels_room(rows: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Panels to `fill`, coordinates as words, and what sums start from; zeros in the last one."""
    count = -(-rows // LANES)
    out, starts = room((count, groups, LANES), _WORD), room((count, LANES), _SUM)
    out[-1:], starts[-1:] = 0, 0
    return out, starts


def as_steps(words: np.ndarray) -> np.ndarray:
    """Filled panels as `compare` reads them."""
    return words.view(np.int8).reshape(*words.shape, TOGETHER)


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
        Coordinates, twice where they are two together. q' is a multiple of `AT_ONCE`; what was
        added finds nothing. For tiles uint8[q', 64], filled up with zeros.
    """
    steps = rows.steps[:, : rows.width]
    count = -(-len(steps) // AT_ONCE) * AT_ONCE
    own = np.zeros((count, rows.groups, 4), np.uint8)
    # No sum is greater: of rows that are not there, it may be anything.
    floor = np.full(count, np.iinfo(_SUM).max, _SUM)
    _shift(steps, bound, TOP, own, floor)
    if not tiles.LENT or own.shape[1] * 4 > tiles.BYTES:
        return own, floor
    # No line of a tile lies in two of the cache.
    tiled = room((count, tiles.BYTES), np.uint8)
    tiled[...] = 0
    tiled[:, : 4 * rows.groups] = own.reshape(count, -1)
    return tiled, floor
