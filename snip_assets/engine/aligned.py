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
    out = zeros(array.shape, array.dtype)
    out[...] = array
    return out


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].view(dtype).reshape(shape)
