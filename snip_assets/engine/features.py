"""Features of all shards as one array of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from .errors import BadInputError
from .progress import task
from .storage.files import open_npy
from .storage.remote_files import CacheFullError, is_remote
from .storage.resident import allow_open_files
from .storage.row_file import RowFile, copy, may_map
from .threads import ordered_map

BLOCK = 4096
# Shards that are held open, by each of a few objects of a process; each takes two files.
MOST_OPEN, SHARE = 4096, 16


def opened_alike(files: Sequence[Path]) -> list[np.ndarray]:
    """Files of features, memory-mapped.

    Raises
    ------
    BadInputError
        One cannot be read, holds no features, or others than the first.
    """
    arrays: list[np.ndarray] = []
    for file in files:
        arrays.append(open_npy(file))
        require_alike(file, arrays[-1].shape, arrays[-1].dtype, files[0].name, arrays[0])
    return arrays


def require_alike(
    file: Path, shape: tuple[int, ...], dtype: np.dtype, first_name: str, first: Any
) -> None:
    """Raise BadInputError unless a file holds features, as the first one does.

    Parameters
    ----------
    first
        What has the shape and dtype of the first one.
    """
    if len(shape) != 2 or dtype.kind != "f":
        raise BadInputError(
            f"{file}: {dtype}, shape {shape}; expected rows x dimension of float16, float32 or "
            "float64."
        )
    if (shape[1], dtype) != (first.shape[1], first.dtype):
        raise BadInputError(
            f"{file}: {shape[1]} numbers a row of {dtype}, but {first.shape[1]} of {first.dtype} "
            f"in {first_name}; all shards must be alike."
        )


def as_float32(rows: np.ndarray) -> np.ndarray:
    """Rows in float32; half precision through torch, several times faster at it than NumPy.

    Parameters
    ----------
    rows
        Any float; not a read-only memory map.
    """
    if rows.dtype == np.float16:
        return torch.from_numpy(rows).float().numpy()
    return rows.astype(np.float32, copy=False)


def normalised(x: np.ndarray) -> np.ndarray:
    """float32, rows at unit length (zero rows stay zero)."""
    x = np.asarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def at_least(score: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the entries >= floor; `np.nonzero` takes five times as long for a few."""
    row, column = np.divmod(np.flatnonzero(score >= floor), score.shape[1])
    return row, column


class Features:
    """The raw (or SNIP) features of all shards as one array of rows.

    Parameters
    ----------
    paths
        One .npy a shard, by ordinal: features, or one number a row.
    offsets
        int64[S + 1]: row ids at which they start.
    """

    def __init__(self, paths: list[Path], offsets: np.ndarray) -> None:
        self.paths = paths
        self.offsets = np.asarray(offsets, np.int64)
        self._open: dict[int, RowFile] = {}
        self._most = max(1, min(MOST_OPEN, allow_open_files() // SHARE))
        # The cache of remote files may have room for no more than one a thread.
        self._at_once = 1 if any(map(is_remote, paths)) else self._most
        # Threads take rows at the same time.
        self._changing = Lock()

    def shard(self, ordinal: int) -> RowFile:
        """The rows of a shard."""
        found = self._open.get(ordinal)
        if found is not None:
            return found
        try:
            found = RowFile(self.paths[ordinal])
        except CacheFullError:
            # Our own files are held in the cache; without them there may be room.
            with self._changing:
                self._open.clear()
            found = RowFile(self.paths[ordinal])
        with self._changing:
            if len(self._open) >= self._most:
                self._open.pop(next(iter(self._open)))
            self._open[ordinal] = found
        return found

    def holds(self, states: Sequence[tuple[int, ...]]) -> bool:
        """Whether the files that are open are those of these states; see `row_file.file_state`."""
        with self._changing:
            return all(file.state == states[ordinal] for ordinal, file in self._open.items())

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def take(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows by row id, in the order given; read in order of their place in the files.

        Parameters
        ----------
        rows
            int64[n], row ids.
        out
            Array to write them into; default: a new one.

        Returns
        -------
        ndarray
            n x dimension, dtype of the files.

        Raises
        ------
        IndexError
            There is no such row.
        """
        rows = np.asarray(rows).astype(np.int64, copy=False)
        if (rows[1:] >= rows[:-1]).all():
            ordered, places = rows, np.arange(len(rows))
        else:
            places = np.argsort(rows, kind="stable")
            ordered = rows[places]
        cuts = np.searchsorted(ordered, self.offsets)
        if cuts[0] > 0 or cuts[-1] < len(rows):
            raise IndexError(f"{len(self)} rows; asked for {ordered[0]} to {ordered[-1]}")
        ordinals = np.flatnonzero(np.diff(cuts))
        like = self.shard(int(ordinals[0]) if len(ordinals) else 0)
        if out is None:
            out = np.empty((len(rows), *like.shape[1:]), like.dtype)
        mapped = may_map(len(self) * out.strides[0])
        for start in range(0, len(ordinals), self._at_once):
            some = ordinals[start : start + self._at_once]
            files = [self.shard(int(ordinal)) for ordinal in some]
            owner = np.repeat(np.arange(len(some)), cuts[some + 1] - cuts[some])
            own = slice(cuts[some[0]], cuts[some[-1] + 1])
            inside = ordered[own] - self.offsets[some][owner]
            copy(files, owner, inside, out, places[own], mapped)
            del files
        return out


def take_rows(features: Features, rows: np.ndarray, workers: int = 0) -> np.ndarray:
    """What `take` gives of one row or more, read by several threads."""
    like = features.take(rows[:1])
    out = np.empty((len(rows), *like.shape[1:]), like.dtype)

    def work(start: int) -> None:
        part = slice(start, start + BLOCK)
        features.take(rows[part], out[part])

    for _ in ordered_map(work, range(0, len(rows), BLOCK), workers):
        pass
    return out


def search_blocks(
    features: Features,
    ordinals: Iterable[int],
    work: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
    title: str,
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What queries find in the rows of some shards, 4,096 rows at a time, in order.

    Parameters
    ----------
    work
        Gets a copy of a block; returns row ids of queries, positions in the block, and how far
        apart both are.

    Yields
    ------
    query, row, apart
        Row ids (int64), no row with itself; what `work` says of them.
    """

    def one(place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ordinal, start = place
        query, row, apart = work(features.shard(ordinal).block(start, start + BLOCK))
        row = row.astype(np.int64) + start + features.offsets[ordinal]
        others = query != row
        return query[others], row[others], apart[others]

    sizes = np.diff(features.offsets)
    places = [(o, s) for o in ordinals for s in range(0, int(sizes[o]), BLOCK)]
    with task(title, len(places), "blocks") as progress:
        for found in ordered_map(one, places, workers):
            yield found
            progress.advance()
