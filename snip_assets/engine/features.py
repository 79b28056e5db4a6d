"""Features of all shards as one array of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from .files import open_npy
from .progress import task
from .remote_files import CacheFullError
from .resident import trim
from .threads import ordered_map

BLOCK = 4096


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


def at_least(score: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the entries >= floor; `np.nonzero` takes five times as long for a few."""
    row, column = np.divmod(np.flatnonzero(score >= floor), score.shape[1])
    return row, column


# Each row may bring 64 KB of its file into memory, so look at what is there in between.
TAKEN_AT_ONCE = 2048


class Features:
    """The raw (or SNIP) features of all shards as one array of rows.

    Parameters
    ----------
    paths
        One .npy a shard, by ordinal.
    offsets
        int64[S + 1]: row ids at which they start.
    """

    def __init__(self, paths: list[Path], offsets: np.ndarray) -> None:
        self.paths = paths
        self.offsets = np.asarray(offsets, np.int64)
        self._open: dict[int, np.ndarray] = {}

    def shard(self, ordinal: int) -> np.ndarray:
        """Memory map of a shard, n x dimension."""
        trim()
        if ordinal not in self._open:
            if len(self._open) >= 256:
                self._open.pop(next(iter(self._open)))
            try:
                self._open[ordinal] = open_npy(self.paths[ordinal])
            except CacheFullError:
                # Our own maps keep files in the cache; without them there may be room.
                self._open.clear()
                self._open[ordinal] = open_npy(self.paths[ordinal])
        return self._open[ordinal]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows by row id, in the order given; read in order of their place in the files.

        Returns
        -------
        ndarray
            len(rows) x dimension, dtype of the first file.
        """
        rows = np.asarray(rows).astype(np.int64, copy=False)
        ascending = bool((rows[1:] >= rows[:-1]).all())
        order = None if ascending else np.argsort(rows, kind="stable")
        ordered = rows if order is None else rows[order]
        cuts = np.searchsorted(ordered, self.offsets)
        first = int(np.searchsorted(self.offsets, ordered[0], "right") - 1 if len(rows) else 0)
        out = self._empty(first, len(rows))
        for ordinal in np.flatnonzero(np.diff(cuts)):
            for low in range(cuts[ordinal], cuts[ordinal + 1], TAKEN_AT_ONCE):
                high = min(low + TAKEN_AT_ONCE, cuts[ordinal + 1])
                local = ordered[low:high] - self.offsets[ordinal]
                if order is None:
                    self._copy(int(ordinal), local, out[low:high])
                else:
                    out[order[low:high]] = self.shard(int(ordinal))[local]
        return out

    def _empty(self, ordinal: int, rows: int) -> np.ndarray:
        like = self.shard(ordinal)
        return np.empty((rows, like.shape[1]), like.dtype)

    def _copy(self, ordinal: int, local: np.ndarray, out: np.ndarray) -> None:
        """Rows of a shard; its map is let go of at once, so that a small cache has room."""
        shard = self.shard(ordinal)
        if local[-1] >= len(shard):
            raise IndexError(f"{self.paths[ordinal]}: no row {local[-1]}")
        if shard.dtype == out.dtype:
            # Anything but `clip` copies once more.
            np.take(shard, local, axis=0, out=out, mode="clip")
        else:
            out[:] = shard[local]


def search_blocks(
    features: Features,
    ordinals: Iterable[int],
    work: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    title: str,
    workers: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What queries find in the rows of some shards, 4,096 rows at a time.

    Parameters
    ----------
    work
        Gets a copy of a block; returns row ids of queries, and positions in the block.

    Returns
    -------
    query, row : int64[m]
        Row ids, no row with itself.
    """

    def one(place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        ordinal, start = place
        query, row = work(np.array(features.shard(ordinal)[start : start + BLOCK]))
        row = row.astype(np.int64) + start + features.offsets[ordinal]
        return query[query != row], row[query != row]

    sizes = np.diff(features.offsets)
    places = [(o, s) for o in ordinals for s in range(0, int(sizes[o]), BLOCK)]
    queries, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with task(title, len(places), "blocks") as progress:
        for query, row in ordered_map(one, places, workers):
            queries.append(query)
            rows.append(row)
            progress.advance()
    return np.concatenate(queries).astype(np.int64), np.concatenate(rows)
