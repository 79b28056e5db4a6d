"""Arrays that begin where a line of the cache does.

NumPy begins them at any 16 bytes: then every other vector that a kernel loads lies in two lines,
and finding words takes a quarter longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LINE = 64


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy, in C order, that begins at a multiple of 64 bytes."""
    out = room(array.shape, array.dtype)
    out[...] = array
    return out


def room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled that begins at a multiple of 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    whole = np.empty(size + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return whole[start : start + size].view(dtype).reshape(shape)
