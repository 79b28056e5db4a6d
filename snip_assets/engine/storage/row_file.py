"""Rows of an .npy file, read by position into memory of one's own.

A memory map counts every page that was touched as memory of the process, and a fault at a single
row brings in 64 KB around it and waits for them. Here rows that the system holds already are
copied; the others are asked for all at once, so that the disk has many requests to work on, and
copied as they come.

A call to the system for each row costs more than the copy of a short row, though. So where a sample
of them shows that the system holds them already, short rows are copied from the memory map after
all (see `resident` for its pages).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

from snip_assets.engine.errors import BadInputError

from .files import open_npy
from .resident import LIMIT, trim

# Blocks that are asked for beyond the one that is read.
AHEAD = 4
# Bytes of a row that is copied from the map; of the rows that are asked for, one in so many is
# looked up beforehand.
SHORT, LOOK = 512, 64
# Bytes that are read at once, at the most, where rows lie near each other: with so many bytes for
# each, on average. A call to the system takes longer than to copy these.
SPAN, APART = 1 << 16, 1 << 12
# Rows that are copied from maps before their pages are counted: 64 KB each at worst.
GATHERED = 2048
# What the kernels know of a file: its number at the system, where its rows start there, and in the
# memory map.
HANDLE, HEAD, ADDRESS = range(3)
_NO_WAIT, _WILL_NEED = getattr(os, "RWF_NOWAIT", 0), getattr(os, "POSIX_FADV_WILLNEED", 0)


def _function(name: str, *arguments: Any) -> Any:
    """A function of the C library."""
    return types.ExternalFunction(name, types.int64(*arguments))


_pread = _function("pread", types.int32, types.uint64, types.uint64, types.int64)

if _NO_WAIT:
    _preadv2 = _function(
        "preadv2", types.int32, types.uint64, types.int32, types.int64, types.int32
    )
    _fadvise = _function("posix_fadvise", types.int32, types.int64, types.int64, types.int32)

    @njit(nogil=True)
    def _copied(handle, target, size, position, vector):
        """Copy what the system holds; whether that was all. Ask for it otherwise."""
        vector[0], vector[1] = np.uint64(target), np.uint64(size)
        address = np.uint64(vector.ctypes.data)
        got = _preadv2(handle, address, np.int32(1), np.int64(position), np.int32(_NO_WAIT))
        if got < size:
            _fadvise(handle, np.int64(position), np.int64(size), np.int32(_WILL_NEED))
        return got >= size

else:

    @njit(nogil=True)
    def _copied(handle, target, size, position, vector):
        """Nothing is copied without waiting here."""
        return False


@njit(nogil=True)
def _together(files, rows, places, k):
    """Rows from k on that follow one another in a file and in memory."""
    count = 1
    while (
        k + count < rows.shape[0]
        and files[k + count] == files[k]
        and rows[k + count] == rows[k] + count
        and places[k + count] == places[k] + count
    ):
        count += 1
    return count


@njit(nogil=True)
def _near(files, rows, k, width):
    """Rows from k on that are worth reading at once, with what lies between them."""
    count = 1
    while (
        k + count < rows.shape[0]
        and files[k + count] == files[k]
        and rows[k + count] > rows[k + count - 1]
        and (rows[k + count] - rows[k]) * width <= min(SPAN - width, APART * count)
    ):
        count += 1
    return count


@njit(nogil=True)
def _piece(table, width, files, rows, places, k):
    """What to read at once from k on: number and position in the file, bytes, rows.

    And whether the rows go where they belong, or what lies between them comes along.
    """
    number, there = np.int32(table[files[k], HANDLE]), table[files[k], HEAD] + rows[k] * width
    run, near = _together(files, rows, places, k), _near(files, rows, k, width)
    if run >= near:
        return number, there, run * width, run, True
    return number, there, (rows[k + near - 1] - rows[k] + 1) * width, near, False


_memcpy = _function("memcpy", types.uint64, types.uint64, types.uint64)


@njit(nogil=True, cache=True)
def _held(table, width, files, rows):
    """Whether the system holds a sample of the rows in memory."""
    target, vector = np.empty(width, np.uint8), np.empty(2, np.uint64)
    for k in range(0, rows.shape[0], LOOK):
        handle, there = table[files[k], HANDLE], table[files[k], HEAD] + rows[k] * width
        if not _copied(np.int32(handle), target.ctypes.data, width, there, vector):
            return False
    return True


@njit(nogil=True, cache=True)
def _gather(table, width, files, rows, places, target):
    """Copy rows from memory to memory."""
    for k in range(rows.shape[0]):
        here, there = target + places[k] * width, table[files[k], ADDRESS] + rows[k] * width
        _memcpy(np.uint64(here), np.uint64(there), np.uint64(width))


@njit(nogil=True)
def _scatter(width, rows, places, target, room, k, count):
    """Copy what was read from row k on to the places of its rows."""
    for n in range(k, k + count):
        here, there = target + places[n] * width, room.ctypes.data + (rows[n] - rows[k]) * width
        _memcpy(np.uint64(here), np.uint64(there), np.uint64(width))


@njit(nogil=True, cache=True)
def _read(table, width, files, rows, places, target):
    """Copy rows of files to places in memory; returns how many could be read."""
    vector, room = np.empty(2, np.uint64), np.empty(SPAN, np.uint8)
    late, waiting, k = np.empty(rows.shape[0], np.int64), 0, 0
    while k < rows.shape[0]:
        number, there, size, count, fits = _piece(table, width, files, rows, places, k)
        # Asked for here: an array that nothing below names is freed.
        here = target + places[k] * width if fits else np.int64(room.ctypes.data)
        if not _copied(number, here, size, there, vector):
            late[waiting] = k
            waiting += 1
        elif not fits:
            _scatter(width, rows, places, target, room, k, count)
        k += count
    for k in late[:waiting]:
        number, there, size, count, fits = _piece(table, width, files, rows, places, k)
        here, done = target + places[k] * width if fits else np.int64(room.ctypes.data), 0
        while done < size:
            got = _pread(
                number, np.uint64(here + done), np.uint64(size - done), np.int64(there + done)
            )
            if got <= 0:
                return k + np.searchsorted(rows[k : k + count] - rows[k], done // width)
            done += got
        if not fits:
            _scatter(width, rows, places, target, room, k, count)
    return rows.shape[0]


def file_state(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another at its place, or from itself before a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class RowFile:
    """One .npy file of rows.

    Parameters
    ----------
    path
        n x dimension, C order.

    Raises
    ------
    BadInputError
        As `open_npy`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Never read; it tells where the rows are, and keeps the copy of a remote file.
        array: Any = open_npy(path)
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.plain = bool(array.flags.c_contiguous)
        self.state: tuple[int, ...] | None = None
        if self.plain:
            self._handle = os.open(array.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
            self.state = file_state(os.fstat(self._handle))
            self.place = (self._handle, array.offset, array.ctypes.data)

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, start: int, stop: int) -> np.ndarray:
        """A copy of consecutive rows; as a slice, it may end at the last row.

        The rows behind it are asked for, for whoever reads block by block.
        """
        part = self.array[start:stop]
        if not (self.plain and part.size and hasattr(os, "preadv")):
            return np.array(part, order="C")
        out, done = np.empty(part.shape, self.dtype), 0
        width, target = self.array.strides[0], out.data.cast("B")
        position = self.array.offset + start * width
        while done < out.nbytes:
            got = os.preadv(self._handle, [target[done:]], position + done)
            if got <= 0:
                raise _cut(self, start + done // width)
            done += got
        if _WILL_NEED:
            ahead = AHEAD * out.nbytes
            os.posix_fadvise(self._handle, position + done, ahead, os.POSIX_FADV_WILLNEED)
        return out

    def whole(self) -> bool:
        """Whether the file still has all its bytes: a map of missing ones ends the process."""
        return os.fstat(self._handle).st_size >= self.array.offset + self.array.nbytes


def may_map(size: int) -> bool:
    """Whether so many bytes of rows are worth reading through memory maps.

    Pages come in 16 at a time. Where they must be handed back before all are there, that takes
    half as long again as to read each row by position.
    """
    return size <= LIMIT // 4 * 3


def copy(
    files: Sequence[RowFile],
    owner: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    places: np.ndarray,
    mapped: bool = True,
) -> None:
    """Copy rows of some files to places of an array.

    Parameters
    ----------
    owner
        int64[n], the file of each row: its position in `files`; those of a file together.
    rows, places
        int64[n].
    out
        m x dimension, C order.
    mapped
        Whether short rows may come from the memory maps; see `may_map`.

    Raises
    ------
    IndexError
        A file has no such row.
    BadInputError
        A file became shorter, or cannot be read.
    """
    if not len(rows):
        return
    beyond = (rows < 0) | (rows >= np.array([len(file) for file in files])[owner])
    if beyond.any():
        file, row = files[owner[beyond.argmax()]], rows[beyond.argmax()]
        raise IndexError(f"{file.path}: {len(file)} rows, none is {row}")
    if places.min() < 0 or places.max() >= len(out):
        raise IndexError(f"{len(out)} places, none is {places.max()}")
    kind = (out.dtype, out.shape[1:])
    plain = all(file.plain and (file.dtype, file.shape[1:]) == kind for file in files)
    if not (plain and out.flags.c_contiguous):
        for number, file in enumerate(files):
            own = owner == number
            out[places[own]] = file.array[rows[own]]
        return
    table = np.array([file.place for file in files], np.int64)
    width, target = files[0].array.strides[0], out.ctypes.data
    scattered = len(files) > 1 or abs(int(rows[-1]) - int(rows[0])) >= len(rows)
    mapped = mapped and len(rows) >= LOOK and scattered and width <= SHORT
    if mapped and all(file.whole() for file in files) and _held(table, width, owner, rows):
        for start in range(0, len(rows), GATHERED):
            part = slice(start, start + GATHERED)
            _gather(table, width, owner[part], rows[part], places[part], target)
            trim()
        return
    done = _read(table, width, owner, rows, places, target)
    if done < len(rows):
        raise _cut(files[owner[done]], int(rows[done]))


def _cut(file: RowFile, row: int) -> BadInputError:
    return BadInputError(
        f"{file.path}: row {row} cannot be read (was the file cut short meanwhile?); write it "
        "again."
    )
