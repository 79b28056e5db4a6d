"""The loss of a batch and its gradient, on the processor: row by row of its similarities.

What `objective` says in terms of torch, which goes through all similarities of a batch, and through
memory, for each operation. Here a row stays near the core until it is done. On one core, since
those of torch wait for its next product without giving way to other threads.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .float_rows import row_of
from .registers import FASTER, LANES, dot, lane_maxima
from .vectors import (
    FLOATS,
    INTS,
    WIDTH,
    arrays,
    constant,
    fma,
    intrinsic,
    load,
    rint,
    same,
    splat,
    total,
)

# Rows whose products are made at once.
BLOCK = 256
# Below e^-87 float32 is nothing; what a row is to itself is put there.
LOWEST, ITSELF = -87.0, -1e30
_SERIES = [1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0]
# log 2 in two parts, of which the first times a small whole number is exact.
_LOG_HIGH = 0.693359375
_LOG_LOW = log(2) - _LOG_HIGH


def _exponential(builder: Any, value: Any) -> Any:
    """e^x of numbers from `LOWEST` to 80: 2^n times the series of what is left of x."""
    whole = rint(builder, builder.fmul(value, same(1 / log(2))))
    left = fma(builder, whole, same(-_LOG_HIGH), value)
    left = fma(builder, whole, same(-_LOG_LOW), left)
    series = same(_SERIES[0])
    for factor in _SERIES[1:]:
        series = fma(builder, series, left, same(factor))
    exponent = builder.add(builder.fptosi(whole, INTS), ir.Constant(INTS, [127] * WIDTH))
    bits = builder.shl(exponent, ir.Constant(INTS, [23] * WIDTH))
    return builder.fmul(series, builder.bitcast(bits, FLOATS))


@intrinsic
def exponentials(
    typing_context: Any, values: Any, row: Any, factor: Any, shift: Any, out: Any, line: Any
) -> Any:
    """e^(factor x - shift) of a row of float32[n, 16 k], to a line of `out`, as wide; their sum.

    Numbers below `LOWEST` are taken for it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, target = arrays(context, builder, signature, arguments, 0, 4)
        start, count = row_of(builder, array, arguments[1])
        there, _ = row_of(builder, target, arguments[5])
        times, less = splat(builder, arguments[2]), builder.fneg(splat(builder, arguments[3]))
        sums = cgutils.alloca_once_value(builder, same(0))
        with cgutils.for_range(builder, count) as loop:
            at = builder.mul(loop.index, constant(WIDTH))
            value = fma(builder, load(builder, builder.gep(start, [at]), FLOATS), times, less)
            low = builder.fcmp_ordered("<", value, same(LOWEST))
            value = _exponential(builder, builder.select(low, same(LOWEST), value))
            place = builder.bitcast(builder.gep(there, [at]), FLOATS.as_pointer())
            builder.store(value, place, align=4)
            builder.store(builder.fadd(builder.load(sums), value), sums)
        return total(builder, builder.load(sums))

    number = types.float32
    return number(values, types.int64, number, number, out, types.int64), generate


_FAST = {"reassoc", "nsz", "contract"}


@njit(nogil=True, cache=True)
def _softmax(values, i, factor, tops, buffers, line):
    """Numerators of the softmax of a row times a factor, without the row itself, to a line.

    Returns their sum, and the logarithm of the denominator.
    """
    kept, values[i, i] = values[i, i], np.float32(ITSELF)
    lane_maxima(values, i * values.shape[1], values.shape[1], tops)
    shift = factor * tops.max()
    sum_ = exponentials(values, i, factor, shift, buffers, line)
    values[i, i], buffers[line, i] = kept, 0
    return sum_, np.log(sum_) + shift


@njit(nogil=True, cache=True, fastmath=_FAST)
def _difference(have, now, want, wanted, out):
    for j in range(len(out)):
        out[j] = have * now[j] - want * wanted[j]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _add_near(raw, similar, least, factor, out):
    """Add the errors of near pairs times a factor; the sum of their squares."""
    none = sum_ = np.float32(0.0)
    for j in range(len(out)):
        error = similar[j] - raw[j] if max(raw[j], similar[j]) > least else none
        sum_ += error * error
        out[j] += factor * error
    return sum_


@njit(nogil=True, cache=True)
def _count_near(raw, similar, least):
    """Pairs of different rows above a similarity on either side."""
    count = 0
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            count += max(raw[i, j], similar[i, j]) > least
        count -= max(raw[i, i], similar[i, i]) > least
    return count


@njit(nogil=True, cache=True)
def _entropy(raw, other, i, factor, weight, tops, buffers, out):
    """Cross-entropy of the softmax of row i of both, times a weight; `out` receives its gradient.

    Divisions are of float64 in Numba, and so would be loops with their results.
    """
    wanted, _ = _softmax(raw, i, factor, tops, buffers, 0)
    now, denominator = _softmax(other, i, factor, tops, buffers, 1)
    entropy = denominator - factor * dot(buffers[0], other[i]) / wanted
    have, want = np.float32(weight * factor / now), np.float32(weight * factor / wanted)
    _difference(have, buffers[1], want, buffers[0], out)
    return weight * entropy


@njit(nogil=True, cache=True)
def _of_rows(raw, similar, coded, sharp, wide, least, near, one, code):
    """The loss; `similar` and `coded` receive its gradient.

    Parameters
    ----------
    raw, similar
        float32[b, b].
    coded
        The same of decoded rows, less half of their squared lengths; [0, 0] without that term.
    sharp, wide
        1 / temperature, of the neighbours and of the codes.
    least, near
        Similarity above which pairs are near, and the weight of their squared error.
    one, code
        Weight of the cross-entropy of a row, of the neighbours and of the codes.
    """
    width, loss, tops = raw.shape[1], 0.0, np.empty(LANES, np.float32)
    buffers, gradient = np.empty((2, width), np.float32), np.empty(width, np.float32)
    for i in range(len(raw)):
        loss += _entropy(raw, similar, i, sharp, one, tops, buffers, gradient)
        if near > 0:
            kept, raw[i, i] = raw[i, i], similar[i, i]
            twice = np.float32(2 * near)
            loss += near * _add_near(raw[i], similar[i], least, twice, gradient)
            raw[i, i] = kept
        similar[i] = gradient
        if len(coded):
            loss += _entropy(raw, coded, i, wide, code, tops, buffers, gradient)
            coded[i] = gradient
    return loss


class Terms(NamedTuple):
    """Weights of the loss; see `objective.Recipe`, and `Settings` for the temperature."""

    temperature: float
    near_weight: float
    near_distance: float
    code_weight: float
    code_temperature: float
    commit_weight: float


def fused_loss(
    images: torch.Tensor,
    short: torch.Tensor,
    fixed: torch.Tensor | None,
    terms: Terms,
    *,
    bfloat16: bool = False,
) -> torch.Tensor:
    """The loss of `objective`, with the gradient that autograd finds for it, but for rounding.

    Parameters
    ----------
    images
        float32[b, D], unit rows, on the processor; b as `fits` asks.
    short
        float32[b, dim], unit rows; a gradient flows to them.
    fixed
        float32[b, dim], what decodes from their codes; None without that term.
    bfloat16
        Make the products of the gradient in bfloat16, as those of the layers that it goes to.
    """
    with torch.no_grad():
        loss, gradient = _loss_of(_with_itself(images), short.detach(), fixed, terms, bfloat16)
    return _Known.apply(short, loss, gradient)


def _with_itself(rows: torch.Tensor) -> torch.Tensor:
    """Products of all rows with all; those of two blocks are made once, and mirrored."""
    out = rows.new_empty((len(rows), len(rows)))
    for start in range(0, len(rows), BLOCK):
        own, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
        torch.mm(rows[start:], rows[own].T, out=out[start:, own])
        out[own, later] = out[later, own].T
    return out


def _loss_of(
    raw: torch.Tensor,
    short: torch.Tensor,
    fixed: torch.Tensor | None,
    terms: Terms,
    bfloat16: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, number = len(short), np.float32
    kind = torch.bfloat16 if bfloat16 else torch.float32
    similar, coded = short @ short.T, short.new_empty((0, 0))
    if fixed is not None:
        coded = fixed @ fixed.T - fixed.square().sum(1) / 2
    one, other, third = raw.numpy(), similar.numpy(), coded.numpy()
    least, near = number(1 - terms.near_distance / 2), number(0)
    if terms.near_weight:
        pairs = max(1, _count_near(one, other, least))
        near = number(4 * terms.near_weight / pairs / terms.near_distance**2)
    sharp, wide = number(1 / terms.temperature), number(1 / terms.code_temperature)
    weights = number(1 / rows), number(terms.code_weight / rows)
    loss = _of_rows(one, other, third, sharp, wide, least, near, *weights)
    gradient = _both_ways(similar.to(kind), short.to(kind))
    if fixed is not None:
        # Codes stand for the rows: their gradient passes on to these.
        gradient += _both_ways(coded.to(kind), fixed.to(kind))
        apart, commitment = short - fixed, terms.code_weight * terms.commit_weight / rows
        gradient += 2 * commitment * apart - coded.sum(0)[:, None] * fixed
        loss += commitment * float(apart.square().sum())
    return torch.tensor(loss, dtype=torch.float32), gradient


def _both_ways(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(weights + weights.T) @ rows: float32."""
    return torch.addmm(weights @ rows, weights.T, rows).float()


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(
        context: Any, short: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        context.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(context: Any, *by: Any) -> Any:
        (gradient,) = context.saved_tensors
        return by[0] * gradient, None, None


def fits(rows: int, device: torch.device) -> bool:
    """Whether batches of so many rows can have it there."""
    return FASTER and device.type == "cpu" and rows % LANES == 0
