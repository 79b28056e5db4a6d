"""Small products and comparisons that are used up in registers, for Numba kernels.

`nearest_word` multiplies a part of a row with a codebook: only the number of the nearest word
leaves, where a library's product writes all scores to memory, to be read again. See
`scaled_products` for products that do leave, and `byte_products` for the product of the join. The
code names no processor; LLVM finds the instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .vectors import (
    FEATURES,
    FLOATS,
    I32,
    I64,
    INTS,
    SHORTS,
    WIDTH,
    arrays,
    constant,
    intrinsic,
    load,
    plus_products,
    splat,
    total,
)

LANES = 32
# Sums that the registers hold beside the rows: of all lanes, or of half of them at a time.
WIDE = "avx512f" in FEATURES
# Whether sums of products of 16 bits are twice as fast as those of float32.
FASTER = ("avx512vnni" if WIDE else "avx2") in FEATURES
QUERIES = 8 if WIDE else 4
PARTS = LANES // WIDTH
# Rows are filled up to a multiple of so many: of QUERIES, and of the rows of a tile (see `tiles`).
AT_ONCE = 16
_ZEROS = ir.Constant(INTS, [0] * WIDTH)


def _two_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any, Any]:
    """Numbers of a row, and where a row of one array and one of another begin."""
    one, other = arrays(context, builder, signature, arguments, 0, 2)
    width = builder.extract_value(one.shape, 1)
    left, right = (
        builder.gep(array.data, [builder.mul(arguments[k], width)])
        for array, k in ((one, 1), (other, 3))
    )
    return width, left, right


@intrinsic
def squared_steps(typing_context: Any, x: Any, i: Any, rows: Any, j: Any) -> Any:
    """Squared distance of row `i` of x to row `j` of rows.

    Parameters
    ----------
    x, rows
        int16[n, width], C order, a multiple of 32 numbers wide; differences fit 16 bits.

    Returns
    -------
    int64
        The same in any order of summation, as long as it is below 2^31.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, left, right = _two_rows(context, builder, signature, arguments)
        sums = cgutils.alloca_once_value(builder, ir.Constant(INTS, [0] * WIDTH))
        count = builder.lshr(width, constant(5))
        with cgutils.for_range(builder, count) as loop:
            at = builder.shl(loop.index, constant(5))
            a, b = (load(builder, builder.gep(side, [at]), SHORTS) for side in (left, right))
            difference = builder.sub(a, b)
            both = plus_products(builder, builder.load(sums), difference, difference)
            builder.store(both, sums)
        return builder.sext(total(builder, builder.load(sums)), I64)

    return types.int64(x, types.int64, rows, types.int64), generate


@intrinsic
def squared_distance(typing_context: Any, x: Any, i: Any, rows: Any, j: Any) -> Any:
    """Squared distance of row `i` of x to row `j` of rows, without what is left of whole vectors.

    Parameters
    ----------
    x, rows
        float32[n, dim], C order.

    Returns
    -------
    float32
        Summed in an order of its own, the same on every processor.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, left, right = _two_rows(context, builder, signature, arguments)
        sums = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * WIDTH))
        with cgutils.for_range(builder, builder.udiv(width, constant(WIDTH))) as loop:
            at = builder.mul(loop.index, constant(WIDTH))
            a, b = (load(builder, builder.gep(side, [at]), FLOATS) for side in (left, right))
            difference = builder.fsub(a, b)
            square = builder.fmul(difference, difference)
            builder.store(builder.fadd(builder.load(sums), square), sums)
        return total(builder, builder.load(sums))

    return types.float32(x, types.int64, rows, types.int64), generate


WORDS = 256
# Vectors of words whose scores the registers hold at a time.
_TOGETHER = 16 if WIDE else 4


def _first_smallest(builder: Any, values: Any, numbers: Any) -> Any:
    """The number of the smallest value of a vector, the smallest number of equals."""
    lanes = WIDTH
    while lanes > 1:
        lanes //= 2
        halves = []
        for vector in (values, numbers):
            undefined = ir.Constant(vector.type, ir.Undefined)
            for first in (0, lanes):
                chosen = list(range(first, first + lanes))
                lane_type = ir.VectorType(I32, lanes)
                mask = ir.Constant(lane_type, chosen)
                halves.append(builder.shuffle_vector(vector, undefined, mask))
        low, high, low_number, high_number = halves
        less = builder.fcmp_ordered("<", high, low)
        equal = builder.fcmp_ordered("==", high, low)
        earlier = builder.icmp_unsigned("<", high_number, low_number)
        take_high = builder.or_(less, builder.and_(equal, earlier))
        values = builder.select(take_high, high, low)
        numbers = builder.select(take_high, high_number, low_number)
    return builder.extract_element(numbers, ir.Constant(I32, 0))


@intrinsic
def nearest_word(
    typing_context: Any, x: Any, row: Any, start: Any, table: Any, part: Any, norms: Any
) -> Any:
    """The nearest of 256 words to a part of a row, the first of equals.

    Parameters
    ----------
    x
        float32[n, dim], C order; the part of `row` that begins at `start` is meant.
    table
        float32[M, dsub, 256], C order: the words of each part, by columns.
    norms
        float32[M, 256]: half their squared norms.

    Returns
    -------
    int64
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, words, half = arrays(context, builder, signature, arguments, 0, 3, 5)
        dim, size = builder.extract_value(data.shape, 1), builder.extract_value(words.shape, 1)
        place = builder.add(builder.mul(arguments[1], dim), arguments[2])
        own = builder.gep(data.data, [place])
        first = builder.mul(arguments[4], builder.mul(size, constant(WORDS)))
        columns = builder.gep(words.data, [first])
        norm = builder.gep(half.data, [builder.mul(arguments[4], constant(WORDS))])

        def vector(base: Any, number: int) -> Any:
            return load(builder, builder.gep(base, [constant(number * WIDTH)]), FLOATS)

        numbers = ir.VectorType(I32, WIDTH)
        best, best_number = None, None
        for low in range(0, WORDS // WIDTH, _TOGETHER):
            group = range(low, low + _TOGETHER)
            scores = [cgutils.alloca_once_value(builder, vector(norm, k)) for k in group]
            with cgutils.for_range(builder, size) as loop:
                value = splat(builder, builder.load(builder.gep(own, [loop.index])))
                line = builder.gep(columns, [builder.mul(loop.index, constant(WORDS))])
                for k, score in zip(group, scores, strict=True):
                    product = builder.fmul(value, vector(line, k), flags=("contract",))
                    rest = builder.fsub(builder.load(score), product, flags=("contract",))
                    builder.store(rest, score)
            for k, score in zip(group, scores, strict=True):
                now = builder.load(score)
                here = ir.Constant(numbers, list(range(k * WIDTH, (k + 1) * WIDTH)))
                if best is None:
                    best, best_number = now, here
                    continue
                less = builder.fcmp_ordered("<", now, best)
                best = builder.select(less, now, best)
                best_number = builder.select(less, here, best_number)
        return builder.zext(_first_smallest(builder, best, best_number), I64)

    return types.int64(x, types.int64, types.int64, table, types.int64, norms), generate


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def dot(one, other):
    """Product of two rows of float32, summed in any order."""
    sum_ = np.float32(0.0)
    for d in range(len(one)):
        sum_ += one[d] * other[d]
    return sum_


@intrinsic
def lane_maxima(typing_context: Any, values: Any, start: Any, count: Any, largest: Any) -> Any:
    """The largest of every `LANES`-th number, from each of the first `LANES` on.

    Parameters
    ----------
    values
        float32, C order, no NaN; `count` of them from a flat position on, a multiple of `LANES`.
    largest
        float32[LANES]; receives them.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, out = arrays(context, builder, signature, arguments, 0, 3)

        def vectors(base: Any, first: Any) -> list[Any]:
            lanes = [builder.add(first, constant(WIDTH * part)) for part in range(PARTS)]
            return [load(builder, builder.gep(base, [lane]), FLOATS) for lane in lanes]

        begin, end = arguments[1], builder.add(arguments[1], arguments[2])
        tops = [cgutils.alloca_once_value(builder, v) for v in vectors(array.data, begin)]
        with cgutils.for_range_slice(builder, begin, end, constant(LANES)) as (at, _):
            for value, top in zip(vectors(array.data, at), tops, strict=True):
                so_far = builder.load(top)
                larger = builder.fcmp_ordered(">", value, so_far)
                builder.store(builder.select(larger, value, so_far), top)
        for part, top in enumerate(tops):
            there = builder.gep(out.data, [constant(WIDTH * part)])
            builder.store(builder.load(top), builder.bitcast(there, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(values, types.int64, types.int64, largest), generate


@intrinsic
def above(typing_context: Any, values: Any, start: Any, floor: Any) -> Any:
    """Which of the `LANES` float32 from a flat position on are > floor, as the bits of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        floors, word = splat(builder, arguments[2]), ir.Constant(I32, 0)
        for part in range(PARTS):
            at = builder.add(arguments[1], constant(WIDTH * part))
            place = builder.bitcast(builder.gep(array.data, [at]), FLOATS.as_pointer())
            bits = builder.fcmp_ordered(">", builder.load(place, align=4), floors)
            wide = builder.zext(builder.bitcast(bits, ir.IntType(WIDTH)), I32)
            word = builder.or_(word, builder.shl(wide, ir.Constant(I32, WIDTH * part)))
        return word

    return types.uint32(values, types.int64, types.float32), generate


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Position of the lowest bit that is set; the mask must not be 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        position = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(position, I64)

    return types.int64(types.uint32), generate
