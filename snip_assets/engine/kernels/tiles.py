"""Tiles of AMX: 16 rows times 16 rows, 64 numbers of 8 bits each, in one instruction.

Sums in 32 bits leave by way of memory, which takes as long as two products. Linux lends the
registers to processes that ask for them.

Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .vectors import FEATURES, INTS, constant

# Rows of a tile, and bytes of each.
ROWS, BYTES = 16, 64
# Bytes at which the two tiles of a panel begin in each of its lines.
HALVES = (constant(0), constant(BYTES))
I8, I16 = ir.IntType(8), ir.IntType(16)
# `arch_prctl`, what asks it for permission, and for which registers.
_SYSCALL, _ASK, _TILES = 158, 0x1023, 18


def _lent() -> bool:
    # Whoever has tiles has VNNI, unless told otherwise; numbers are laid out alike for both.
    if not {"amx-int8", "avx512vnni"} <= FEATURES or sys.platform != "linux":
        return False
    # For all threads; those of processes that are started ask again.
    return ctypes.CDLL(None).syscall(_SYSCALL, _ASK, _TILES) == 0


# Whether tiles may be used. Kernels must find this in the types of their arrays: what is compiled
# is kept for other processes, which may not have the permission.
LENT = _lent()


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, arguments)


def _tile(number: int) -> Any:
    return ir.Constant(I8, number)


def configure(builder: Any, shapes: list[tuple[Any, Any]]) -> None:
    """Set rows, and bytes of a row, of the tiles from 0 on; as int64 values of LLVM."""
    table = cgutils.alloca_once(builder, I8, size=BYTES)
    cgutils.memset(builder, table, constant(BYTES), 0)
    builder.store(_tile(1), table)
    for number, (rows, width) in enumerate(shapes):
        place = builder.gep(table, [constant(16 + 2 * number)])
        there = builder.bitcast(place, I16.as_pointer())
        builder.store(builder.trunc(width, I16), there, align=1)
        place = builder.gep(table, [constant(48 + number)])
        builder.store(builder.trunc(rows, I8), place)
    _call(builder, "ldtilecfg", table)


def read(builder: Any, number: int, place: Any, stride: Any) -> None:
    """Fill a tile from rows in memory, `stride` bytes apart (int64)."""
    _call(builder, "tileloadd64", _tile(number), place, stride)


def write(builder: Any, number: int, place: Any, stride: Any) -> None:
    """The other way round."""
    _call(builder, "tilestored64", _tile(number), place, stride)


def clear(builder: Any, number: int) -> None:
    """Fill a tile with zeros."""
    _call(builder, "tilezero", _tile(number))


def add_products(builder: Any, sums: int, one: int, other: int, signs: str) -> None:
    """Add the products of the rows of one tile and the columns of another.

    Parameters
    ----------
    sums
        Tile of int32, a row for each row of `one` and a column for each of `other`.
    one
        Rows of bytes.
    other
        Four bytes of each column after the other, the next four of all in the next row.
    signs
        `s` or `u` for each side: with a sign or without.
    """
    _call(builder, f"tdpb{signs}d", _tile(sums), _tile(one), _tile(other))


def in_turns(
    builder: Any,
    blocks: Any,
    vectors: int,
    multiply: Callable[[Any, Any], None],
    finish: Callable[[Any, Any], None],
) -> None:
    """Multiply block after block, and finish each while the next is multiplied.

    Parameters
    ----------
    blocks
        How many, as an int64 of LLVM.
    vectors
        Room for the sums of a block, in vectors of int32.
    multiply, finish
        Make the code for a block, of its number and of where its sums are.
    """
    room = cgutils.alloca_once(builder, INTS, size=2 * vectors)
    one = constant(1)

    def place(block: Any) -> Any:
        odd = builder.and_(block, one)
        return builder.gep(room, [builder.mul(odd, constant(vectors))])

    def finish_before(block: Any) -> None:
        with builder.if_then(builder.icmp_signed(">", block, constant(0))):
            before = builder.sub(block, one)
            finish(before, place(before))

    with cgutils.for_range(builder, blocks) as loop:
        multiply(loop.index, place(loop.index))
        finish_before(loop.index)
    finish_before(blocks)
    # Tiles that hold nothing need not be saved when threads take turns.
    _call(builder, "tilerelease")
