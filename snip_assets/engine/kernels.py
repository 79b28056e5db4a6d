"""Small matrix products that are used up in registers, for Numba kernels.

`compare` multiplies a block of queries with a panel of rows and compares the products at once: only
one bit a pair leaves. `nearest_word` does so with a part of a row and a codebook: only the number
of the nearest word leaves. A library's product writes all scores to memory, to be read again.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

# Type checkers see the function that makes the code, and not the one that Numba calls.
intrinsic: Any = numba_intrinsic

LANES = 32
# Sums that the registers hold beside the rows: of all lanes, or of half of them at a time.
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
QUERIES = 8 if _WIDE else 6

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WIDTH = 16
_PARTS = LANES // _WIDTH
_VECTOR = ir.VectorType(ir.FloatType(), _WIDTH)


def _number(value: int) -> Any:
    return ir.Constant(_I64, value)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH)
    return builder.shuffle_vector(first, undefined, zeros)


def _products(
    builder: Any, width: Any, panel: Any, queries: list[Any], parts: range
) -> list[list[Any]]:
    """Sums of products of each query and some parts of the panel's rows, in registers."""
    zero = ir.Constant(_VECTOR, [0.0] * _WIDTH)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in parts] for _ in queries]
    fused = ("contract",)
    with cgutils.for_range(builder, width) as loop:
        line = builder.gep(panel, [builder.mul(loop.index, _number(LANES))])
        places = [builder.gep(line, [_number(_WIDTH * part)]) for part in parts]
        pointer = _VECTOR.as_pointer()
        rows = [builder.load(builder.bitcast(place, pointer), align=4) for place in places]
        for query, own in zip(queries, sums, strict=True):
            value = _splat(builder, builder.load(builder.gep(query, [loop.index])))
            for row, total in zip(rows, own, strict=True):
                product = builder.fmul(value, row, flags=fused)
                builder.store(builder.fadd(builder.load(total), product, flags=fused), total)
    return sums


@intrinsic
def compare(
    typing_context: Any, panels: Any, panel: Any, queries: Any, first: Any, bound: Any, masks: Any
) -> Any:
    """Compare a block of queries with a panel of rows.

    Parameters
    ----------
    panels
        float32[p, width, LANES], C order; `panel` is the one to use.
    queries
        float32[q, width], C order; `QUERIES` of them from `first` on.
    bound
        float32[q].
    masks
        uint32[QUERIES]; receives, for each query, the rows whose product is >= its bound, as bits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, block, bounds, out = (
            context.make_array(signature.args[k])(context, builder, arguments[k])
            for k in (0, 2, 4, 5)
        )
        width = builder.extract_value(block.shape, 1)
        size = builder.mul(width, _number(LANES))
        start = builder.gep(rows.data, [builder.mul(arguments[1], size)])
        places = [builder.add(arguments[3], _number(k)) for k in range(QUERIES)]
        own = [builder.gep(block.data, [builder.mul(place, width)]) for place in places]
        groups = [range(_PARTS)] if _WIDE else [range(part, part + 1) for part in range(_PARTS)]
        halves = [_products(builder, width, start, own, parts) for parts in groups]
        sums = [list(chain(*parts)) for parts in zip(*halves, strict=True)]
        for k, (place, parts) in enumerate(zip(places, sums, strict=True)):
            floor = _splat(builder, builder.load(builder.gep(bounds.data, [place])))
            word = ir.Constant(_I32, 0)
            for part, total in enumerate(parts):
                bits = builder.fcmp_ordered(">=", builder.load(total), floor)
                wide = builder.zext(builder.bitcast(bits, ir.IntType(_WIDTH)), _I32)
                word = builder.or_(word, builder.shl(wide, ir.Constant(_I32, _WIDTH * part)))
            builder.store(word, builder.gep(out.data, [_number(k)]))
        return context.get_dummy_value()

    return types.void(panels, types.int64, queries, types.int64, bound, masks), generate


WORDS = 256


def _first_smallest(builder: Any, values: Any, numbers: Any) -> Any:
    """The number of the smallest value of a vector, the smallest number of equals."""
    lanes = _WIDTH
    while lanes > 1:
        lanes //= 2
        halves = []
        for vector in (values, numbers):
            undefined = ir.Constant(vector.type, ir.Undefined)
            for first in (0, lanes):
                chosen = list(range(first, first + lanes))
                lane_type = ir.VectorType(_I32, lanes)
                mask = ir.Constant(lane_type, chosen)
                halves.append(builder.shuffle_vector(vector, undefined, mask))
        low, high, low_number, high_number = halves
        less = builder.fcmp_ordered("<", high, low)
        equal = builder.fcmp_ordered("==", high, low)
        earlier = builder.icmp_unsigned("<", high_number, low_number)
        take_high = builder.or_(less, builder.and_(equal, earlier))
        values = builder.select(take_high, high, low)
        numbers = builder.select(take_high, high_number, low_number)
    return builder.extract_element(numbers, ir.Constant(_I32, 0))


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
        data, words, half = (
            context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 3, 5)
        )
        dim, size = builder.extract_value(data.shape, 1), builder.extract_value(words.shape, 1)
        place = builder.add(builder.mul(arguments[1], dim), arguments[2])
        own = builder.gep(data.data, [place])
        first = builder.mul(arguments[4], builder.mul(size, _number(WORDS)))
        columns = builder.gep(words.data, [first])
        norm = builder.gep(half.data, [builder.mul(arguments[4], _number(WORDS))])
        count, pointer = WORDS // _WIDTH, _VECTOR.as_pointer()

        def vector(base: Any, number: int) -> Any:
            there = builder.gep(base, [_number(number * _WIDTH)])
            return builder.load(builder.bitcast(there, pointer), align=4)

        scores = [cgutils.alloca_once_value(builder, vector(norm, k)) for k in range(count)]
        with cgutils.for_range(builder, size) as loop:
            value = _splat(builder, builder.load(builder.gep(own, [loop.index])))
            line = builder.gep(columns, [builder.mul(loop.index, _number(WORDS))])
            for k, score in enumerate(scores):
                product = builder.fmul(value, vector(line, k), flags=("contract",))
                rest = builder.fsub(builder.load(score), product, flags=("contract",))
                builder.store(rest, score)
        numbers = ir.VectorType(_I32, _WIDTH)
        best = builder.load(scores[0])
        best_number = ir.Constant(numbers, list(range(_WIDTH)))
        for k, score in enumerate(scores[1:], 1):
            now = builder.load(score)
            less = builder.fcmp_ordered("<", now, best)
            here = ir.Constant(numbers, list(range(k * _WIDTH, (k + 1) * _WIDTH)))
            best = builder.select(less, now, best)
            best_number = builder.select(less, here, best_number)
        return builder.zext(_first_smallest(builder, best, best_number), _I64)

    return types.int64(x, types.int64, types.int64, table, types.int64, norms), generate


@intrinsic
def above(typing_context: Any, values: Any, start: Any, floor: Any) -> Any:
    """Which of the `LANES` float32 from a flat position on are > floor, as the bits of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        floors, word = _splat(builder, arguments[2]), ir.Constant(_I32, 0)
        for part in range(_PARTS):
            at = builder.add(arguments[1], _number(_WIDTH * part))
            place = builder.bitcast(builder.gep(array.data, [at]), _VECTOR.as_pointer())
            bits = builder.fcmp_ordered(">", builder.load(place, align=4), floors)
            wide = builder.zext(builder.bitcast(bits, ir.IntType(_WIDTH)), _I32)
            word = builder.or_(word, builder.shl(wide, ir.Constant(_I32, _WIDTH * part)))
        return word

    return types.uint32(values, types.int64, types.float32), generate


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Position of the lowest bit that is set; the mask must not be 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        position = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(position, _I64)

    return types.int64(types.uint32), generate


@njit(nogil=True, cache=True)
def _fill(rows, out):
    for i in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            out[i // LANES, d, i % LANES] = rows[i, d]


def panels(rows: np.ndarray) -> np.ndarray:
    """Rows as `compare` reads them, filled up with zeros.

    Parameters
    ----------
    rows
        float32[n, width].

    Returns
    -------
    float32[ceil(n / LANES), width, LANES]
    """
    out = np.zeros((-(-len(rows) // LANES), rows.shape[1], LANES), np.float32)
    _fill(rows, out)
    return out


def fill_up(values: np.ndarray, by: float) -> np.ndarray:
    """Values, with more at the end so that their number is a multiple of `QUERIES`."""
    more = -len(values) % QUERIES
    if not more:
        return values
    return np.concatenate([values, np.full((more, *values.shape[1:]), by, values.dtype)])
