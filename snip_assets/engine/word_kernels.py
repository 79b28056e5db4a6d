"""Sums of words and differences of rows, rounded to steps while in registers.

A compiler left to itself stores a sum after each word and loads it for the next: five times as
slow.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .vectors import (
    FLOATS,
    I64,
    INTS,
    WIDTH,
    arrays,
    clamped,
    constant,
    intrinsic,
    load,
    rint,
    splat,
    total,
)

BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_ZEROS = ir.Constant(FLOATS, [0.0] * WIDTH)


def _rounded(builder: Any, width: Any, row: Any, factor: Any, top: Any, value: Any) -> Any:
    """Write `value(first)`, lanes from the first number on, in steps; the row's squared norm."""
    norms = cgutils.alloca_once_value(builder, _ZEROS)
    with cgutils.for_range(builder, builder.udiv(width, constant(WIDTH))) as loop:
        first = builder.mul(loop.index, constant(WIDTH))
        scaled = builder.fmul(value(first), splat(builder, factor))
        steps = clamped(builder, rint(builder, scaled), splat(builder, top))
        square = builder.fmul(steps, steps)
        builder.store(builder.fadd(builder.load(norms), square), norms)
        short = builder.trunc(builder.fptosi(steps, INTS), BYTES)
        there = builder.bitcast(builder.gep(row, [first]), BYTES.as_pointer())
        builder.store(short, there, align=1)
    return total(builder, builder.load(norms))


@intrinsic
def rounded_sum(
    typing_context: Any, book: Any, codes: Any, i: Any, factor: Any, top: Any, out: Any
) -> Any:
    """Write the sum of the words of code `i`, times a factor, in whole steps.

    Parameters
    ----------
    book
        float32[M, 256, width], C order, whole numbers; a multiple of `WIDTH` wide.
    codes
        uint8[n, M], C order.
    factor, top
        float32: what a sum is multiplied with, and where it is cut then; top <= 127.
    out
        int8[n, width], C order; row `i` is written.

    Returns
    -------
    float32
        The squared norm of the row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, own, rows = arrays(context, builder, signature, arguments, 0, 1, 5)
        number, factor, top = arguments[2:5]
        parts, size, width = cgutils.unpack_tuple(builder, words.shape)
        code = builder.gep(own.data, [builder.mul(number, parts)])
        sums = cgutils.alloca_once(builder, FLOATS)

        def value(first: Any) -> Any:
            builder.store(_ZEROS, sums)
            with cgutils.for_range(builder, parts) as loop:
                word = builder.zext(builder.load(builder.gep(code, [loop.index])), I64)
                place = builder.add(builder.mul(loop.index, size), word)
                at = builder.add(builder.mul(place, width), first)
                part = load(builder, builder.gep(words.data, [at]), FLOATS)
                builder.store(builder.fadd(builder.load(sums), part), sums)
            return builder.load(sums)

        row = builder.gep(rows.data, [builder.mul(number, width)])
        return _rounded(builder, width, row, factor, top, value)

    arguments = (book, codes, types.int64, types.float32, types.float32, out)
    return types.float32(*arguments), generate


@intrinsic
def rounded_difference(
    typing_context: Any, x: Any, origin: Any, i: Any, factor: Any, top: Any, out: Any
) -> Any:
    """Write row `i` of x less an origin, times a factor, in whole steps.

    Parameters
    ----------
    x
        float32[n, width], C order; a multiple of `WIDTH` wide.
    origin
        float32[width].
    factor, top, out
        As for `rounded_sum`.

    Returns
    -------
    float32
        The squared norm of the row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, begins, rows = arrays(context, builder, signature, arguments, 0, 1, 5)
        number, factor, top = arguments[2:5]
        width = builder.extract_value(values.shape, 1)
        at = builder.mul(number, width)
        own, row = builder.gep(values.data, [at]), builder.gep(rows.data, [at])

        def value(first: Any) -> Any:
            here, there = (
                load(builder, builder.gep(data, [first]), FLOATS) for data in (own, begins.data)
            )
            return builder.fsub(here, there)

        return _rounded(builder, width, row, factor, top, value)

    arguments = (x, origin, types.int64, types.float32, types.float32, out)
    return types.float32(*arguments), generate
