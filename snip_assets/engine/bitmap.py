"""A bitmap of duplicates: one entry a row, true = drop; ours or the authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from .errors import BadInputError
from .storage.files import open_npy
from .storage.working_copies import here

# Which bit of a byte is the first row's: that of value 1 (little), or 128 (big, as numpy.packbits).
BitOrder = Literal["little", "big"]


class Bitmap:
    """A bitmap on disk, memory-mapped.

    Parameters
    ----------
    path
        `.npy` of bool or of 0 and 1 in bytes, in any shape of one long axis; or `.bits`, packed.
    rows
        Rows that it covers; needed for `.bits` only, whose last byte may be padded with zeros.
    bit_order
        Of `.bits`. The other order is told only by ones where the padding should be.

    Raises
    ------
    BadInputError
        It is not a bitmap.
    """

    def __init__(self, path: Path, rows: int | None = None, bit_order: BitOrder = "little") -> None:
        self.path, self.bit_order = path, bit_order
        self.values: np.ndarray
        self.packed = path.suffix == ".bits"
        if self.packed:
            if rows is None:
                raise BadInputError(f"{path}: packed bits need the row offsets; give --offsets.")
            if not here(path).is_file():
                raise BadInputError(f"{path}: no such file.")
            if (size := path.stat().st_size) != -(-rows // 8):
                raise BadInputError(
                    f"{path}: {size} bytes for {rows} rows; {-(-rows // 8)} are needed. It belongs "
                    "to another data set."
                )
            self.values = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
            self._length = rows
            if np.unpackbits(self.values[rows // 8 :], bitorder=bit_order)[rows % 8 :].any():
                other = "big" if bit_order == "little" else "little"
                raise BadInputError(
                    f"{path}: marks rows beyond the last, {rows - 1}: it belongs to another data "
                    f"set, or its bits are in the other order (--bit-order {other})."
                )
            return
        values = open_npy(path)
        if values.dtype.kind not in "bui" or values.dtype.itemsize != 1:
            raise BadInputError(f"{path}: dtype {values.dtype}; a bitmap is bool (or bytes 0, 1).")
        if values.size != max(values.shape, default=0):
            raise BadInputError(f"{path}: shape {values.shape}; a bitmap has one entry a row.")
        self.values = values.reshape(-1)
        self._length = len(self.values)

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> np.ndarray:
        """bool[stop - start]: true = drop.

        Raises
        ------
        BadInputError
            The bitmap ends before, or holds something other than 0 and 1.
        """
        if not 0 <= start <= stop <= len(self):
            raise BadInputError(
                f"{self.path}: too short: {len(self)} entries, but rows {start} to {stop} were "
                "asked for. It belongs to another data set, or shards before these are missing."
            )
        if self.packed:
            low = start // 8
            bits = np.unpackbits(self.values[low : -(-stop // 8)], bitorder=self.bit_order)
            return bits[start - 8 * low : stop - 8 * low].astype(bool)
        values = np.asarray(self.values[start:stop])
        if values.dtype != bool:
            if len(values) and (values.max() > 1 or values.min() < 0):
                raise BadInputError(f"{self.path}: holds numbers other than 0 and 1.")
            values = values.astype(bool)
        return values

    def require(self, rows: int, whose: str) -> None:
        """Raise BadInputError unless it has exactly this many entries."""
        if len(self) != rows:
            word = "short" if len(self) < rows else "long"
            raise BadInputError(
                f"{self.path}: too {word}: {len(self)} entries, but {whose} has {rows} rows. A "
                "bitmap fits exactly the data set that it was made for."
            )


def digest(drop: np.ndarray) -> str:
    """xxh3-128 of a slice."""
    return xxhash.xxh3_128(np.packbits(drop).tobytes() + str(len(drop)).encode()).hexdigest()
