"""A Linear layer in whole numbers of 16 bits.

With rows in steps of 1 / 32,767 of their length, and weights in steps that differ from output to
output, every sum of products is exact in 32 bits, whatever its order. Rounding in all layers of a
net changes a SNIP feature about as much as its being kept in float16 does (2.1e-5 a number instead
of 1.2e-5); and a layer takes two thirds of the time of float32 where the processor multiplies
numbers of 16 bits twice as fast (`kernels.FASTER`).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import nn

from . import float_rows
from .gelu import gelu_unit_whole
from .registers import LANES
from .vectors import WIDTH
from .whole_rows import column_panels, products, room

STEPS = 32_767.0
# Largest length of an output's weights in steps: |sum| <= STEPS * LONGEST < 2^31.
LONGEST = 60_000.0


@njit(nogil=True, cache=True, fastmath={"nsz", "reassoc", "contract"})
def _unit_whole(rows, steps, lengths, out):
    """Rows in steps of their lengths, and these."""
    for i in range(rows.shape[0]):
        total = np.float32(0.0)
        for d in range(rows.shape[1]):
            total += rows[i, d] * rows[i, d]
        lengths[i] = np.sqrt(total)
        times = steps / max(lengths[i], np.float32(1e-30))
        for d in range(rows.shape[1]):
            out[i, d] = np.int16(min(max(np.rint(rows[i, d] * times), -steps), steps))


@njit(nogil=True, cache=True)
def _of_length(products, lengths, bias, out):
    """Products of rows of unit length, as of those of some length, with a bias."""
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] = products[i, d] * lengths[i] + bias[d]


class WholeLinear:
    """The layer.

    Parameters
    ----------
    layer
        float32 weights, with a bias or none.
    """

    def __init__(self, layer: nn.Linear) -> None:
        weights = layer.weight.detach().cpu().double().numpy()
        self.outputs = len(weights)
        largest = np.abs(weights).max(1, initial=0.0)
        lengths = np.linalg.norm(weights, axis=1)
        # Nothing is divided by zero: an output without weights is its bias.
        steps = np.minimum(STEPS / np.maximum(largest, 1e-30), LONGEST / np.maximum(lengths, 1e-30))
        self._panels = column_panels(np.rint(weights * steps[:, None]))
        columns = self._panels.shape[0] * LANES
        self._scale, self._bias, self._none = np.zeros((3, columns), np.float32)
        self._scale[: self.outputs] = 1 / (steps * STEPS)
        if layer.bias is not None:
            self._bias[: self.outputs] = layer.bias.detach().cpu().numpy()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Outputs of some rows.

        Parameters
        ----------
        rows
            float32[n, inputs].

        Returns
        -------
        float32[n, outputs]
        """
        if float_rows.readable(rows):
            whole, lengths = float_rows.unit_whole(rows, STEPS)
        else:
            whole, lengths = room(*rows.shape), np.empty(len(rows), np.float32)
            _unit_whole(rows, np.float32(STEPS), lengths, whole)
        return self._of_lengths(whole, lengths)

    def of_gelu(self, rows: np.ndarray) -> np.ndarray:
        """The same of the GELU of some rows, in C order, which are overwritten."""
        if rows.shape[1] % WIDTH:
            return self(torch.ops.aten.gelu_(torch.from_numpy(rows)).numpy())
        return self._of_lengths(*gelu_unit_whole(rows, STEPS))

    def _of_lengths(self, whole: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        out = np.empty((len(lengths), self.outputs), np.float32)
        unit = products(self._panels, whole, self._scale, self._none)
        _of_length(unit, lengths, self._bias, out)
        return out

    def of_whole(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The same of the first rows of what `whole_rows` gives of unit ones, with `STEPS`."""
        out = products(self._panels, rows, self._scale, self._bias)
        return np.ascontiguousarray(out[:count, : self.outputs])
