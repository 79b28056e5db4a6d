"""Hashes of rows: XXH3 with 64 bits, the same as `xxhash.xxh3_64` of the bytes of each row.

The library hashes one row a call, and the interpreter, which it holds meanwhile, can do so on one
core only. Long rows are hashed by a kernel here, on any number of cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .vectors import I64, arrays, constant, intrinsic, splat

# Rows of more bytes than this are hashed in stripes; shorter ones in other ways.
SHORT = 240
# Bytes of a stripe, stripes to a block, bytes by which the secret moves on for each.
STRIPE, STRIPES, MOVE = 64, 16, 8
# Where in the secret the last stripe looks, the stirring, and the merging.
LAST, STIR, MERGE = 121, 128, 11
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_STIRRED = 0x165667919E3779F9
_LANES = 8
_WORDS, _WIDE = ir.VectorType(I64, _LANES), ir.IntType(128)
_FIRST = [_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1]
# The default of the algorithm.
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)


def _at(builder: Any, start: Any, place: Any) -> Any:
    """Words from memory, some bytes on."""
    there = builder.gep(start, [place if hasattr(place, "type") else constant(place)])
    return builder.load(builder.bitcast(there, _WORDS.as_pointer()), align=1)


def _take(builder: Any, sums: Any, words: Any, key: Any) -> None:
    """Add a stripe to the sums."""
    mixed = builder.xor(words, key)
    low = builder.and_(mixed, splat(builder, constant(0xFFFFFFFF), _LANES))
    high = builder.lshr(mixed, splat(builder, constant(32), _LANES))
    order = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [1, 0, 3, 2, 5, 4, 7, 6])
    swapped = builder.shuffle_vector(words, words, order)
    both = builder.add(swapped, builder.mul(low, high))
    builder.store(builder.add(builder.load(sums), both), sums)


def _stir(builder: Any, sums: Any, key: Any) -> None:
    value = builder.load(sums)
    value = builder.xor(value, builder.lshr(value, splat(builder, constant(47), _LANES)))
    prime = splat(builder, constant(_P32_1), _LANES)
    builder.store(builder.mul(builder.xor(value, key), prime), sums)


def _merged(builder: Any, sums: Any, secret: Any, length: Any) -> Any:
    """The hash that the sums give."""
    value = builder.mul(length, constant(_P64_1))
    every = builder.xor(builder.load(sums), _at(builder, secret, MERGE))
    for k in range(0, _LANES, 2):
        one, other = (
            builder.zext(builder.extract_element(every, constant(n)), _WIDE) for n in (k, k + 1)
        )
        product = builder.mul(one, other)
        high = builder.trunc(builder.lshr(product, ir.Constant(_WIDE, 64)), I64)
        value = builder.add(value, builder.xor(builder.trunc(product, I64), high))
    value = builder.xor(value, builder.lshr(value, constant(37)))
    value = builder.mul(value, constant(_STIRRED))
    return builder.xor(value, builder.lshr(value, constant(32)))


@intrinsic
def _hash(typing_context: Any, rows: Any, row: Any, secret: Any) -> Any:
    """XXH3 of a row of uint8[n, width], width > `SHORT`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, secrets = arrays(context, builder, signature, arguments, 0, 2)
        key, width = secrets.data, builder.extract_value(block.shape, 1)
        start = builder.gep(block.data, [builder.mul(arguments[1], width)])
        sums = cgutils.alloca_once_value(builder, ir.Constant(_WORDS, _FIRST))

        def stripes(first: Any, count: Any) -> None:
            with cgutils.for_range(builder, count) as loop:
                place = builder.add(first, builder.mul(loop.index, constant(STRIPE)))
                moved = _at(builder, key, builder.mul(loop.index, constant(MOVE)))
                _take(builder, sums, _at(builder, start, place), moved)

        before = builder.udiv(builder.sub(width, constant(1)), constant(STRIPE))
        blocks = builder.udiv(before, constant(STRIPES))
        size = constant(STRIPE * STRIPES)
        with cgutils.for_range(builder, blocks) as loop:
            stripes(builder.mul(loop.index, size), constant(STRIPES))
            _stir(builder, sums, _at(builder, key, STIR))
        whole = builder.mul(blocks, constant(STRIPES))
        stripes(builder.mul(blocks, size), builder.sub(before, whole))
        end = builder.sub(width, constant(STRIPE))
        _take(builder, sums, _at(builder, start, end), _at(builder, key, LAST))
        return _merged(builder, sums, key, width)

    return types.uint64(rows, types.int64, secret), generate


@njit(nogil=True, cache=True)
def _hashes(rows, secret, out):
    for i in range(rows.shape[0]):
        out[i] = _hash(rows, i, secret)


def row_hashes(block: np.ndarray) -> np.ndarray:
    """XXH3 of each row: uint64[n].

    Parameters
    ----------
    block
        n x dim, C order.
    """
    rows = block.view(np.uint8).reshape(len(block), block.shape[1] * block.itemsize)
    out = np.empty(len(rows), np.uint64)
    if rows.shape[1] > SHORT:
        _hashes(rows, _SECRET, out)
    else:
        out[:] = [xxhash.xxh3_64_intdigest(row.data) for row in rows]
    return out
