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


# Vectors of a row whose sums the registers hold: one alone waits for each sum.
_TOGETHER = 4


def _rounded(builder: Any, width: Any, row: Any, factor: Any, top: Any, values: Any) -> Any:
    """Write `values(first, count)`, vectors of a row, in steps; its squared norm."""
    norms = cgutils.alloca_once_value(builder, _ZEROS)
    block = constant(_TOGETHER * WIDTH)
    whole = builder.mul(builder.udiv(width, block), block)
    for begin, end, count in ((constant(0), whole, _TOGETHER), (whole, width, 1)):
        step = constant(count * WIDTH)
        with cgutils.for_range_slice(builder, begin, end, step) as (first, _):
            for k, value in enumerate(values(first, count)):
                scaled = builder.fmul(value, splat(builder, factor))
                steps = clamped(builder, rint(builder, scaled), splat(builder, top))
                square = builder.fmul(steps, steps)
                builder.store(builder.fadd(builder.load(norms), square), norms)
                short = builder.trunc(builder.fptosi(steps, INTS), BYTES)
                place = builder.gep(row, [builder.add(first, constant(k * WIDTH))])
                builder.store(short, builder.bitcast(place, BYTES.as_pointer()), align=1)
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

        def values(first: Any, count: int) -> list[Any]:
            sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(count)]
            for so_far in sums:
                builder.store(_ZEROS, so_far)
            with cgutils.for_range(builder, parts) as loop:
                word = builder.zext(builder.load(builder.gep(code, [loop.index])), I64)
                place = builder.add(builder.mul(loop.index, size), word)
                at = builder.gep(words.data, [builder.add(builder.mul(place, width), first)])
                for k, so_far in enumerate(sums):
                    part = load(builder, builder.gep(at, [constant(k * WIDTH)]), FLOATS)
                    builder.store(builder.fadd(builder.load(so_far), part), so_far)
            return [builder.load(so_far) for so_far in sums]

        row = builder.gep(rows.data, [builder.mul(number, width)])
        return _rounded(builder, width, row, factor, top, values)

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
        array, begins, rows = arrays(context, builder, signature, arguments, 0, 1, 5)
        number, factor, top = arguments[2:5]
        width = builder.extract_value(array.shape, 1)
        at = builder.mul(number, width)
        own, row = builder.gep(array.data, [at]), builder.gep(rows.data, [at])

        def values(first: Any, count: int) -> list[Any]:
            at = [builder.add(first, constant(k * WIDTH)) for k in range(count)]
            here, there = (
                [load(builder, builder.gep(data, [place]), FLOATS) for place in at]
                for data in (own, begins.data)
            )
            return [builder.fsub(one, other) for one, other in zip(here, there, strict=True)]

        return _rounded(builder, width, row, factor, top, values)

    arguments = (x, origin, types.int64, types.float32, types.float32, out)
    return types.float32(*arguments), generate
