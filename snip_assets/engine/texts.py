"""Texts of an Arrow file by row, a few here and a few there.

Arrow takes rows of one record batch after the other. Where a few hundred rows of each of a hundred
batches are asked for, that takes three times as long as to copy the texts from the memory-mapped
file, as is done here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit

from .storage.resident import watch
from .storage.working_copies import here

BITS = 7


@njit(nogil=True, cache=True)
def _found(words, begins, letters, batch_rows, places, to, start, ends):
    """Where texts begin in the file, and where they will end."""
    for k in range(len(places)):
        batch = places[k] // batch_rows
        word = begins[batch] // 8 + places[k] - batch * batch_rows
        start[k] = words[word] + letters[batch]
        ends[to[k] + 1] = words[word + 1] - words[word]
    for text in range(len(places)):
        ends[text + 1] += ends[text]


@njit(nogil=True, cache=True)
def _copied(whole, start, to, ends, letters):
    """Copy texts to where they belong."""
    for k in range(len(start)):
        shift = start[k] - ends[to[k]]
        for letter in range(ends[to[k]], ends[to[k] + 1]):
            letters[letter] = whole[letter + shift]


class Texts:
    """A column of type large_string, over all record batches of a file.

    Parameters
    ----------
    path
        Arrow file, not compressed; all record batches but the last of the same length.
    column
        Its name.

    Attributes
    ----------
    rows, batch_rows
        Rows of the file, and of a record batch.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._whole = np.memmap(here(path), np.uint8, "r")
        watch(self._whole)
        self._words = self._whole[: len(self._whole) // 8 * 8].view(np.int64)
        file = pa.ipc.open_file(pa.py_buffer(self._whole))
        batches = [
            file.get_batch(number).column(column) for number in range(file.num_record_batches)
        ]
        self.rows, self.batch_rows = sum(map(len, batches)), len(batches[0]) if batches else 1
        self._any = any(batch.null_count < len(batch) for batch in batches)
        # Where the parts of each batch lie: bits for texts that are there, ends, letters.
        self._valid, self._ends, self._letters = (
            np.array([self._place(batch, part) for batch in batches], np.int64) for part in range(3)
        )

    def _place(self, batch: pa.Array, part: int) -> int:
        """Where a buffer begins in the file; -1 where all texts are there."""
        buffer = batch.buffers()[part]
        if part == 0 and not batch.null_count:
            return -1
        return 0 if buffer is None else buffer.address - self._whole.ctypes.data

    def take(self, places: np.ndarray, to: np.ndarray | None = None) -> pa.Array:
        """Some texts: large_string[n].

        Parameters
        ----------
        places
            int64[n], rows of the file; ascending ones are read in half the time.
        to
            int64[n], which text of the array each becomes; default: in the order asked for.

        Raises
        ------
        IndexError
            There is no such row.
        """
        if len(places) and not 0 <= places.min() <= places.max() < self.rows:
            raise IndexError(f"{self.rows} texts, asked for {places.min()} to {places.max()}")
        if not self._any:
            return pa.nulls(len(places), pa.large_string())
        to = np.arange(len(places)) if to is None else to
        start, ends = np.empty(len(places), np.int64), np.zeros(len(places) + 1, np.int64)
        _found(self._words, self._ends, self._letters, self.batch_rows, places, to, start, ends)
        letters = np.empty(ends[-1], np.uint8)
        _copied(self._whole, start, to, ends, letters)
        buffers = [self._bits(places, to), pa.py_buffer(ends), pa.py_buffer(letters)]
        return pa.Array.from_buffers(pa.large_string(), len(places), buffers)

    def _bits(self, places: np.ndarray, to: np.ndarray) -> pa.Buffer | None:
        """Which texts are there; None where all are."""
        if (self._valid < 0).all():
            return None
        batch, inside = np.divmod(places, self.batch_rows)
        valid = self._valid[batch]
        byte = self._whole[np.maximum(valid, 0) + inside // 8]
        there = np.empty(len(places), np.bool_)
        there[to] = (valid < 0) | (byte >> (inside & BITS).astype(np.uint8) & np.uint8(1) == 1)
        return pa.py_buffer(np.packbits(there, bitorder="little"))
