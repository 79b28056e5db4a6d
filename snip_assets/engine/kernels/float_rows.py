"""Rows in half or single precision, read by kernels.

Numba knows no numbers of 16 bits with a point, and rounds to whole numbers one at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .registers import FASTER
from .vectors import (
    FLOATS,
    I32,
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
from .whole_rows import LARGEST, room

HALVES = ir.VectorType(ir.HalfType(), WIDTH)
SHORT = ir.VectorType(ir.IntType(16), WIDTH)


def readable(rows: np.ndarray) -> bool:
    """Whether the kernels take such rows: where processors convert them, 16 numbers at a time."""
    fits = rows.dtype in (np.float16, np.float32) and rows.shape[1] % WIDTH == 0
    return FASTER and fits and rows.flags.c_contiguous


def _converted(builder: Any, row: Any, place: Any) -> Any:
    """16 numbers of a row as float32."""
    there = builder.gep(row, [builder.mul(place, constant(WIDTH))])
    if there.type.pointee == ir.FloatType():
        return load(builder, there, FLOATS)
    return builder.fpext(load(builder, there, HALVES), FLOATS)


def row_of(builder: Any, array: Any, number: Any) -> tuple[Any, Any]:
    """Where a row begins, and how many times 16 numbers it has."""
    width = builder.extract_value(array.shape, 1)
    start = builder.gep(array.data, [builder.mul(number, width)])
    return start, builder.udiv(width, constant(WIDTH))


@intrinsic
def squared_length(typing_context: Any, rows: Any, row: Any) -> Any:
    """Sum of squares of a row of float32[n, 16 k], or of the bits of float16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        start, count = row_of(builder, array, arguments[1])
        sums = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * WIDTH))
        with cgutils.for_range(builder, count) as loop:
            value = _converted(builder, start, loop.index)
            square = builder.fmul(value, value)
            builder.store(builder.fadd(builder.load(sums), square), sums)
        return total(builder, builder.load(sums))

    return types.float32(rows, types.int64), generate


@intrinsic
def scaled(typing_context: Any, rows: Any, row: Any, factor: Any, largest: Any, out: Any) -> Any:
    """Round a row times a factor to int16, cut to the largest; into the same row of `out`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, target = arrays(context, builder, signature, arguments, 0, 4)
        start, count = row_of(builder, array, arguments[1])
        there, _ = row_of(builder, target, arguments[1])
        times, top = splat(builder, arguments[2]), splat(builder, arguments[3])
        with cgutils.for_range(builder, count) as loop:
            product = builder.fmul(_converted(builder, start, loop.index), times)
            step = clamped(builder, rint(builder, product), top)
            short = builder.trunc(builder.fptosi(step, ir.VectorType(I32, WIDTH)), SHORT)
            place = builder.gep(there, [builder.mul(loop.index, constant(WIDTH))])
            builder.store(short, builder.bitcast(place, SHORT.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.float32, types.float32, out), generate


@njit(nogil=True, cache=True)
def _lengths(rows, out):
    for i in range(rows.shape[0]):
        out[i] = np.sqrt(squared_length(rows, i))


@njit(nogil=True, cache=True)
def _unit_whole(rows, steps, lengths, out):
    for i in range(rows.shape[0]):
        lengths[i] = np.sqrt(squared_length(rows, i))
        if 0 < lengths[i] < np.inf:
            scaled(rows, i, steps / lengths[i], steps, out)


@njit(nogil=True, cache=True)
def _whole(rows, steps, largest, out):
    for i in range(rows.shape[0]):
        scaled(rows, i, steps, largest, out)


def _numbers(rows: np.ndarray) -> np.ndarray:
    """Rows as Numba takes them."""
    return rows.view(np.uint16) if rows.itemsize == 2 else rows


def lengths(rows: np.ndarray) -> np.ndarray:
    """Lengths of rows that are `readable`: float32[n]."""
    out = np.empty(len(rows), np.float32)
    _lengths(_numbers(rows), out)
    return out


def unit_whole(rows: np.ndarray, steps: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are `readable`, of unit length, rounded to steps.

    Returns
    -------
    whole
        As `whole_rows` gives them; of rows that have no length, anything.
    lengths : float32[n]
        Before.
    """
    found, out = np.empty(len(rows), np.float32), room(len(rows), rows.shape[1])
    _unit_whole(_numbers(rows), np.float32(steps), found, out)
    return out, found


def whole(rows: np.ndarray, steps: float) -> np.ndarray:
    """What `whole_rows` makes of rows that are `readable`, of about unit length or less."""
    out = room(len(rows), rows.shape[1])
    _whole(_numbers(rows), np.float32(steps), np.float32(LARGEST), out)
    return out
