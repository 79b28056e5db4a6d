"""Products of rows and columns in whole numbers, scaled, with a bias: float32 in memory.

In whole numbers of 16 bits two products and their sum are one instruction: twice what float32 does
on AVX2 and on AVX-512 with VNNI. With tiles (see there) numbers of 16 bits are multiplied by their
halves of 8. Sums are exact modulo 2^32 either way, so both find the same.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import tiles
from .registers import LANES, PARTS, QUERIES, WIDE
from .tiles import I8
from .vectors import (
    FLOATS,
    I32,
    INTS,
    SHORTS,
    WIDTH,
    arrays,
    constant,
    intrinsic,
    load,
    plus_byte_products,
    plus_products,
    splat,
)

_ZEROS = ir.Constant(INTS, [0] * WIDTH)


class _Operands(NamedTuple):
    """What `scaled_products` reads and writes, as values of LLVM.

    Attributes
    ----------
    panel, queries
        Where the columns of the panel, and the queries, begin: pointers to bytes.
    size
        Bytes of a query, or of a tile of these.
    count
        Queries, or tiles of these.
    factors, more
        Vectors of the panel's columns.
    out, wide
        Where the first query's products with the panel go, and numbers of a row there.
    """

    panel: Any
    queries: Any
    size: Any
    count: Any
    factors: list[Any]
    more: list[Any]
    out: Any
    wide: Any

    @classmethod
    def of(cls, context: Any, builder: Any, signature: Any, arguments: Any) -> _Operands:
        """From the arguments of `scaled_products`."""
        panels, queries, scale, bias, out = arrays(
            context, builder, signature, arguments, 0, 2, 3, 4, 5
        )
        bytes_ = I8.as_pointer()
        step, number = builder.extract_value(panels.strides, 0), arguments[1]
        columns = [
            builder.add(builder.mul(number, constant(LANES)), constant(WIDTH * part))
            for part in range(PARTS)
        ]
        factors, more = (
            [load(builder, builder.gep(own.data, [column]), FLOATS) for column in columns]
            for own in (scale, bias)
        )
        return cls(
            builder.gep(builder.bitcast(panels.data, bytes_), [builder.mul(number, step)]),
            builder.bitcast(queries.data, bytes_),
            builder.extract_value(queries.strides, 0),
            builder.extract_value(queries.shape, 0),
            factors,
            more,
            builder.gep(out.data, [columns[0]]),
            builder.extract_value(out.shape, 1),
        )

    def query(self, builder: Any, number: Any) -> Any:
        """Where a query begins."""
        return builder.gep(self.queries, [builder.mul(number, self.size)])

    def finish(self, builder: Any, number: Any, sums: list[Any]) -> None:
        """Scale the sums of a query, and write them."""
        line = builder.gep(self.out, [builder.mul(number, self.wide)])
        for part, (value, factor, more) in enumerate(
            zip(sums, self.factors, self.more, strict=True)
        ):
            product = builder.fmul(builder.sitofp(value, FLOATS), factor)
            there = builder.gep(line, [constant(WIDTH * part)])
            there = builder.bitcast(there, FLOATS.as_pointer())
            builder.store(builder.fadd(product, more), there, align=4)


def _sums(
    builder: Any, groups: Any, panel: Any, queries: list[Any], parts: range, plus: Any, kind: Any
) -> list[list[Any]]:
    """Sums of products of each query and some parts of the panel's columns, 32 bits at a time."""
    sums = [[cgutils.alloca_once_value(builder, _ZEROS) for _ in parts] for _ in queries]
    with cgutils.for_range(builder, groups) as loop:
        line = builder.gep(panel, [builder.mul(loop.index, constant(LANES))])
        places = [builder.gep(line, [constant(WIDTH * part)]) for part in parts]
        rows = [builder.bitcast(load(builder, place, INTS), kind) for place in places]
        for query, own in zip(queries, sums, strict=True):
            some = builder.load(builder.gep(query, [loop.index]), align=2)
            value = builder.bitcast(splat(builder, some), kind)
            for row, so_far in zip(rows, own, strict=True):
                builder.store(plus(builder, builder.load(so_far), value, row), so_far)
    return sums


def _by_vectors(builder: Any, operands: _Operands, plus: Any, kind: Any) -> None:
    """`QUERIES` at a time, whose sums the registers hold."""
    groups, words = builder.udiv(operands.size, constant(4)), I32.as_pointer()
    panel = builder.bitcast(operands.panel, words)
    some = [range(PARTS)] if WIDE else [range(part, part + 1) for part in range(PARTS)]
    every = constant(QUERIES)
    with cgutils.for_range_slice(builder, constant(0), operands.count, every) as (first, _):
        numbers = [builder.add(first, constant(k)) for k in range(QUERIES)]
        own = [builder.bitcast(operands.query(builder, number), words) for number in numbers]
        halves = [_sums(builder, groups, panel, own, parts, plus, kind) for parts in some]
        for number, *parts in zip(numbers, *halves, strict=True):
            operands.finish(builder, number, [builder.load(s) for s in chain(*parts)])


def _by_tiles(builder: Any, operands: _Operands, multiply: Any, sums: int, *, tiled: bool) -> None:
    """`tiles.ROWS` at a time.

    Parameters
    ----------
    multiply
        Makes the code that writes the sums of some queries, `sums` of them a number, to a place.
    tiled
        Whether queries are in tiles.
    """
    whole, line, vectors = constant(tiles.ROWS), constant(tiles.BYTES), tiles.ROWS * PARTS
    tiles.configure(builder, [(whole, line)] * 8)

    def multiply_block(block: Any, room: Any) -> None:
        first = block if tiled else builder.mul(block, whole)
        query = operands.query(builder, first)
        multiply(builder, operands, query, builder.bitcast(room, I8.as_pointer()))

    def finish(block: Any, room: Any) -> None:
        first = builder.mul(block, whole)
        for k in range(tiles.ROWS):
            values = [
                _joined(
                    builder,
                    [
                        builder.load(builder.gep(room, [constant(n * vectors + PARTS * k + part)]))
                        for n in range(sums)
                    ],
                )
                for part in range(PARTS)
            ]
            operands.finish(builder, builder.add(first, constant(k)), values)

    blocks = operands.count if tiled else builder.udiv(operands.count, whole)
    tiles.in_turns(builder, blocks, sums * vectors, multiply_block, finish)


def _joined(builder: Any, sums: list[Any]) -> Any:
    """The whole of sums that are one, or those of `_SHORTS`."""
    value = sums[0]
    for (row, column), more in zip(_SHORTS[1:], sums[1:], strict=False):
        shift = ir.Constant(INTS, [8 * (row + column)] * WIDTH)
        value = builder.add(value, builder.shl(more, shift))
    return value


def _bytes(builder: Any, operands: _Operands, query: Any, out: Any) -> None:
    """Products of numbers of 8 bits: those of queries have no sign."""
    line, step = constant(4 * LANES), constant(4 * LANES * tiles.ROWS)
    for sums in (0, 1):
        tiles.clear(builder, sums)
    with cgutils.for_range(builder, builder.udiv(operands.size, constant(tiles.BYTES))) as loop:
        own = builder.gep(query, [builder.mul(loop.index, constant(tiles.BYTES))])
        column = builder.gep(operands.panel, [builder.mul(loop.index, step)])
        tiles.read(builder, 2, own, operands.size)
        for sums, half in enumerate(tiles.HALVES):
            tiles.read(builder, 3 + sums, builder.gep(column, [half]), line)
            tiles.add_products(builder, sums, 2, 3 + sums, "us")
    for sums, half in enumerate(tiles.HALVES):
        tiles.write(builder, sums, builder.gep(out, [half]), line)


# Lower or upper halves of rows and columns, of which there are sums of their own: one that two
# products were added to in turn would wait for itself. Tiles that these halves are in.
_SHORTS = ((0, 0), (0, 1), (1, 0), (1, 1))
_ROWS, _COLUMNS = 4, 6


def _shorts(builder: Any, operands: _Operands, query: Any, out: Any) -> None:
    """Products of numbers of 16 bits: of tiles of their lower halves, and of their upper ones."""
    line, tile = constant(4 * LANES), constant(tiles.ROWS * tiles.BYTES)
    plane = builder.udiv(operands.size, constant(2))
    for number, half in enumerate(tiles.HALVES):
        columns = builder.gep(operands.panel, [builder.mul(operands.size, constant(number))])
        for sums in range(len(_SHORTS)):
            tiles.clear(builder, sums)
        with cgutils.for_range(builder, builder.udiv(plane, tile)) as loop:
            at = builder.mul(loop.index, tile)
            for first, side in ((_ROWS, query), (_COLUMNS, columns)):
                for upper in range(2):
                    place = builder.add(at, builder.mul(plane, constant(upper)))
                    there = builder.gep(side, [place])
                    tiles.read(builder, first + upper, there, constant(tiles.BYTES))
            for sums, (row, column) in enumerate(_SHORTS):
                # The upper halves have the sign.
                signs = "us"[row] + "us"[column]
                tiles.add_products(builder, sums, _ROWS + row, _COLUMNS + column, signs)
        for sums in range(len(_SHORTS)):
            there = builder.gep(out, [constant(sums * tiles.ROWS * 4 * LANES)])
            tiles.write(builder, sums, builder.gep(there, [half]), line)


@intrinsic
def scaled_products(
    typing_context: Any, panels: Any, panel: Any, queries: Any, scale: Any, bias: Any, out: Any
) -> Any:
    """Products of queries with a panel of columns, scaled, with a bias, in float32.

    Parameters
    ----------
    panels
        int16[p, width / 2, LANES, 2], columns, two numbers of each after the other; `panel` is the
        one to use. With VNNI also int8[p, width / 4, LANES, 4]. For tiles the lower and the upper
        halves of numbers: uint8[p, 2, 2, width / 64, 16, 64], of 16 columns, then of the others.
    queries
        int16[q, width], or uint8, C order; q a multiple of 16. For tiles uint8[q, 1, width], where
        width is a multiple of 64, or the halves of numbers: uint8[q / 16, 2, width / 64, 16, 64].
    scale, bias
        float32[p * LANES], of each column.
    out
        float32[q, p * LANES], C order; receives scale * product + bias.
    """
    short = panels.ndim == 6 or panels.dtype == types.int16
    vectors = (plus_products, SHORTS) if short else (plus_byte_products, INTS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands = _Operands.of(context, builder, signature, arguments)
        if queries.ndim == 2:
            _by_vectors(builder, operands, *vectors)
        elif short:
            _by_tiles(builder, operands, _shorts, len(_SHORTS), tiled=True)
        else:
            _by_tiles(builder, operands, _bytes, 1, tiled=False)
        return context.get_dummy_value()

    return types.void(panels, types.int64, queries, scale, bias, out), generate
