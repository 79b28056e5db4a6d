"""Vectors of LLVM, for the kernels that are written in its own instructions."""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba.core import cgutils, registry
from numba.extending import intrinsic as numba_intrinsic

# Type checkers see the function that makes the code, and not the one that Numba calls.
intrinsic: Any = numba_intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)
# Lanes of float32 or int32.
WIDTH = 16
FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
INTS = ir.VectorType(I32, WIDTH)
_BYTES = {ir.FloatType: 4, ir.HalfType: 2}
SHORTS = ir.VectorType(ir.IntType(16), 2 * WIDTH)
# What code is made for: less than the processor has where NUMBA_CPU_FEATURES says so.
FEATURES = frozenset(
    name[1:]
    for name in registry.cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if name.startswith("+")
)


def constant(value: int) -> Any:
    """A whole number, as places in memory are counted."""
    return ir.Constant(I64, value)


def same(value: float) -> Any:
    """A number known beforehand in all lanes, as float32."""
    single = ctypes.c_float(value).value
    return ir.Constant(FLOATS, [single] * WIDTH)


def arrays(context: Any, builder: Any, signature: Any, arguments: Any, *numbers: int) -> list[Any]:
    """Those arguments of a kernel, by number, that are arrays."""
    return [context.make_array(signature.args[k])(context, builder, arguments[k]) for k in numbers]


def load(builder: Any, place: Any, kind: Any) -> Any:
    """A vector from memory, at any place."""
    bytes_ = _BYTES.get(type(kind.element)) or kind.element.width // 8
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=bytes_)


def splat(builder: Any, value: Any, lanes: int = WIDTH) -> Any:
    """The same number in all lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _half(builder: Any, vector: Any, first: int) -> Any:
    """Every other number of a vector, from the first or the second on."""
    lanes = vector.type.count // 2
    mask = ir.Constant(ir.VectorType(I32, lanes), list(range(first, 2 * lanes, 2)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def sum_of_products(builder: Any, one: Any, other: Any) -> Any:
    """x[2k] y[2k] + x[2k + 1] y[2k + 1] of numbers of 16 bits, in 32 bits."""
    wide = ir.VectorType(I32, one.type.count)
    product = builder.mul(builder.sext(one, wide), builder.sext(other, wide))
    return builder.add(_half(builder, product, 0), _half(builder, product, 1))


def _named(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """An instruction by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def plus_products(builder: Any, sums: Any, one: Any, other: Any) -> Any:
    """Sums in 32 bits plus x[2k] y[2k] + x[2k + 1] y[2k + 1] of numbers of 16 bits.

    Sums must stay within 32 bits. With VNNI it is one instruction: the one that would cut them, as
    LLVM makes two of its sister that would not.
    """
    if "avx512vnni" not in FEATURES:
        return builder.add(sums, sum_of_products(builder, one, other))
    values = [builder.bitcast(vector, INTS) for vector in (one, other)]
    return _named(builder, "llvm.x86.avx512.vpdpwssds.512", INTS, [sums, *values])


def plus_byte_products(builder: Any, sums: Any, one: Any, other: Any) -> Any:
    """Sums in 32 bits plus x[4k] y[4k] + ... + x[4k + 3] y[4k + 3]; x without, y with a sign.

    Needs VNNI: LLVM finds the instruction for sums over whole vectors only.
    """
    values = [builder.bitcast(vector, INTS) for vector in (one, other)]
    return _named(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, [sums, *values])


def sums_of_byte_products(builder: Any, one: Any, other: Any) -> Any:
    """x[2k] y[2k] + x[2k + 1] y[2k + 1], x without and y with a sign, cut to 16 bits.

    Said as the processor does it: it cuts. LLVM finds the instruction for 32 bytes, not for 64.
    """
    if "avx512bw" in FEATURES:
        return _named(builder, "llvm.x86.avx512.pmaddubs.w.512", SHORTS, [one, other])
    lanes = one.type.count // 2
    wide, short = ir.VectorType(I32, lanes), ir.VectorType(ir.IntType(16), lanes)
    first, second = (
        builder.mul(
            builder.zext(_half(builder, one, k), wide), builder.sext(_half(builder, other, k), wide)
        )
        for k in (0, 1)
    )
    value = builder.add(first, second)
    for order, limit in (("<", 32767), (">", -32768)):
        edge = ir.Constant(wide, [limit] * lanes)
        value = builder.select(builder.icmp_signed(order, value, edge), value, edge)
    return builder.trunc(value, short)


def rint(builder: Any, vector: Any) -> Any:
    """Whole numbers nearest to those of a vector of float32, as `np.rint` gives."""
    return _named(builder, f"llvm.rint.v{vector.type.count}f32", vector.type, [vector])


def fma(builder: Any, one: Any, other: Any, more: Any) -> Any:
    """one * other + more of vectors of float32, rounded once on every processor."""
    name = f"llvm.fma.v{one.type.count}f32"
    return _named(builder, name, one.type, [one, other, more])


def clamped(builder: Any, vector: Any, top: Any) -> Any:
    """A vector of floats, none further from 0 than `top`, a vector too."""
    for order, edge in (("<", top), (">", builder.fneg(top))):
        vector = builder.select(builder.fcmp_ordered(order, vector, edge), vector, edge)
    return vector


def total(builder: Any, vector: Any) -> Any:
    """The sum over all lanes, by halves."""
    whole, lanes = isinstance(vector.type.element, ir.IntType), vector.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(
                vector,
                ir.Constant(vector.type, ir.Undefined),
                ir.Constant(ir.VectorType(I32, lanes), list(range(first, first + lanes))),
            )
            for first in (0, lanes)
        )
        vector = builder.add(low, high) if whole else builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))
