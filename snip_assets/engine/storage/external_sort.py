"""Sort more numbers than memory holds: sorted runs on disk, merged block by block.

The classic external merge sort (Knuth, The Art of Computer Programming, volume 3, section 5.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numba import njit

BUFFER = 1 << 24
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
BYTES = 8


class Sorter:
    """Sort uint64 keys, each with an optional payload, in bounded memory.

    Records with equal keys come out in the order in which they went in. Memory: about
    `buffer` x (24 bytes, with a payload 48), whatever the number of records.

    Parameters
    ----------
    folder
        An existing folder for the runs; the caller removes it.
    payload
        Type of a number carried with each key, None for keys alone.
    buffer
        Records sorted at a time; 0: `BUFFER`.
    """

    def __init__(
        self, folder: Path, payload: np.typing.DTypeLike | None = None, buffer: int = 0
    ) -> None:
        self.folder, self.buffer = folder, buffer or BUFFER
        self.types = [np.dtype(np.uint64)] + ([] if payload is None else [np.dtype(payload)])
        self._waiting = [np.empty(self.buffer, kind) for kind in self.types]
        self._filled = 0
        self._runs: list[list[np.ndarray]] = []

    def append(self, *columns: np.ndarray) -> None:
        """Add records: keys, and their payload if the sorter has one."""
        start = 0
        while start < len(columns[0]):
            stop = min(len(columns[0]), start + self.buffer - self._filled)
            for waiting, column in zip(self._waiting, columns, strict=True):
                waiting[self._filled : self._filled + stop - start] = column[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == self.buffer:
                self._spill()

    def blocks(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield all records in ascending order of the keys, block by block; once."""
        if not self._runs:
            yield _ordered([waiting[: self._filled] for waiting in self._waiting])
            return
        if self._filled:
            self._spill()
        self._waiting = []
        yield from self._merge()

    def _spill(self) -> None:
        run: list[np.ndarray] = []
        for number, column in enumerate(_ordered([w[: self._filled] for w in self._waiting])):
            path = self.folder / f"run-{id(self):x}-{len(self._runs)}-{number}.bin"
            column.tofile(path)
            run.append(np.memmap(path, column.dtype, "r"))
            with suppress(PermissionError):
                path.unlink()  # the map keeps the data until it is let go
        self._runs.append(run)
        self._filled = 0

    def _merge(self) -> Iterator[tuple[np.ndarray, ...]]:
        window = max(1, self.buffer // len(self._runs))
        places = [0] * len(self._runs)
        while True:
            heads = [run[0][at : at + window] for run, at in zip(self._runs, places, strict=True)]
            last = [
                head[-1]
                for head, run, at in zip(heads, self._runs, places, strict=True)
                if at + window < len(run[0])
            ]
            # Everything below the smallest last key of an unfinished window is at hand.
            counts = [
                int(np.searchsorted(head, min(last), "left")) if last else len(head)
                for head in heads
            ]
            yield from self._take(places, counts)
            if not last:
                return
            # Equal keys may go on behind a window: run by run, so that they keep their order.
            for number, run in enumerate(self._runs):
                yield from self._take_equal(places, number, run[0], min(last), window)

    def _take(self, places: list[int], counts: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
        if not any(counts):
            return
        columns = []
        for number in range(len(self.types)):
            parts = [
                run[number][at : at + count]
                for run, at, count in zip(self._runs, places, counts, strict=True)
            ]
            columns.append(np.concatenate(parts))
        for number, count in enumerate(counts):
            places[number] += count
        yield _ordered(columns)

    def _take_equal(
        self, places: list[int], number: int, keys: np.ndarray, key: np.uint64, window: int
    ) -> Iterator[tuple[np.ndarray, ...]]:
        while True:
            at = places[number]
            count = int(np.searchsorted(keys[at : at + window], key, "right"))
            if count:
                yield tuple(np.array(column[at : at + count]) for column in self._runs[number])
            places[number] += count
            if count < window:
                return


class PairSorter:
    """Sort pairs of whole numbers by the first, then the second.

    Parameters
    ----------
    folder
        As for `Sorter`.
    kind
        Type that holds the numbers. Two of 32 bits are one key; of wider ones, pairs with the same
        first number come out as they went in.
    """

    def __init__(self, folder: Path, kind: np.typing.DTypeLike) -> None:
        self._narrow = np.dtype(kind).itemsize <= 4
        self._sorter = Sorter(folder, None if self._narrow else np.uint64)

    def append(self, first: np.ndarray, second: np.ndarray) -> None:
        """Add pairs."""
        high, low = first.astype(np.uint64), second.astype(np.uint64)
        self._sorter.append(*((high << SHIFT | low,) if self._narrow else (high, low)))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all pairs in order, block by block; once: uint64[n], uint64[n]."""
        for block in self._sorter.blocks():
            yield (block[0] >> SHIFT, block[0] & LOW) if self._narrow else (block[0], block[1])


def _ordered(columns: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    if len(columns) == 1:
        return (sorted_keys(columns[0]),)
    order = np.argsort(_narrow(columns[0]), kind="stable")
    return tuple(column[order] for column in columns)


def _narrow(keys: np.ndarray) -> np.ndarray:
    """Keys near each other as 16 bits, which are sorted by radix, ten times as fast."""
    low = keys.min() if len(keys) else np.uint64(0)
    return (keys - low).astype(np.uint16) if len(keys) and keys.max() - low < 1 << 16 else keys


@njit(nogil=True, cache=True)
def _counted(keys):
    """How often each value of each byte occurs, and whether the lower halves are in order."""
    counts, rising, last = np.zeros((BYTES, 256), np.int64), True, np.uint64(0)
    for key in keys:
        rising &= last <= key & LOW
        last = key & LOW
        for byte in range(BYTES):
            counts[byte, (key >> np.uint64(8 * byte)) & np.uint64(255)] += 1
    return counts, rising


@njit(nogil=True, cache=True)
def _dealt(keys, shift, count, out):
    """Put keys in the order of a byte, those with the same value as they were."""
    place = np.cumsum(count) - count
    for key in keys:
        value = (key >> shift) & np.uint64(255)
        out[place[value]] = key
        place[value] += 1


def sorted_keys(keys: np.ndarray) -> np.ndarray:
    """A sorted copy, by radix; three times as fast as `np.sort` of 64 bits on Zen 4.

    Where the lower halves rise already, as those of pairs often do, half of the work is enough.

    Parameters
    ----------
    keys
        uint64[n]. Memory: as much again, twice.
    """
    counts, rising = _counted(keys)
    room = [np.empty_like(keys), np.empty_like(keys)]
    for byte in range(BYTES // 2 if rising else 0, BYTES):
        if counts[byte].max(initial=0) < len(keys):
            _dealt(keys, np.uint64(8 * byte), counts[byte], room[0])
            keys, room = room[0], room[::-1]
    return keys if keys is room[1] else keys.copy()


def distinct(keys: np.ndarray) -> np.ndarray:
    """The different ones of some keys, ascending.

    `np.unique` of numpy 2.4 hashes them first: fifty times as long for millions that differ.

    Parameters
    ----------
    keys
        uint64[n].
    """
    return once(sorted_keys(keys))


def once(ordered: np.ndarray) -> np.ndarray:
    """The different ones of some numbers that are in order."""
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]


def ascending(numbers: np.ndarray) -> np.ndarray:
    """int64[n]: places of some whole numbers in ascending order; equal ones stay as they are."""
    if len(numbers) and numbers.max() > LOW:
        return np.argsort(numbers, kind="stable")
    places = np.arange(len(numbers), dtype=np.uint64)
    return (sorted_keys(numbers.astype(np.uint64) << SHIFT | places) & LOW).astype(np.int64)
