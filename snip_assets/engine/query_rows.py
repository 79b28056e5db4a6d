"""The rows that query the inverted lists, and their vectors, read in passes over their shards.

Each list is asked by a row here and a row there. To read these for one list after the other takes
several times as long as to read, for some hundred lists at once, what all of them ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numba import njit

from .features import Features
from .storage.files import open_npy
from .storage.resident import trim
from .storage.row_file import may_map
from .threads import ordered_map
from .verify import Rows


@dataclass
class QueryShard:
    """What the join reads of a shard whose rows are queries.

    Attributes
    ----------
    start
        Row id of its first row.
    folder
        Its index shard: who probes which list, and the quantisation errors.
    """

    start: int
    folder: Path

    @cached_property
    def probe_offsets(self) -> np.ndarray:
        """int64[lists + 1]."""
        return np.asarray(open_npy(self.folder / "probe_offsets.npy"))

    @cached_property
    def probe_rows(self) -> np.ndarray:
        """uint32[m], rows in shard by list."""
        return np.asarray(open_npy(self.folder / "probe_rows.npy"))

    @cached_property
    def rows(self) -> int:
        """How many rows it has, as each probes the list that it is in."""
        return int(self.probe_rows.max()) + 1 if len(self.probe_rows) else 0

    @cached_property
    def errors(self) -> np.ndarray:
        """float32[m, 2], of those rows: as often as they probe, so that a list's are together."""
        return np.asarray(open_npy(self.folder / "errors.npy"))


@njit(nogil=True, cache=True)
def _mark(numbers, offsets, rows, asked):
    """Mark the rows of some lists."""
    for number in numbers:
        for k in range(offsets[number], offsets[number + 1]):
            asked[rows[k]] = True


@dataclass(frozen=True)
class QueryVectors:
    """Vectors of some rows in memory.

    Attributes
    ----------
    starts, ahead
        int64: row ids of the first rows of the shards, and rows of all shards ahead of each.
    place
        uint32, for each row of the shards: where in `x` it is, if it is there.
    x
        Vectors.
    """

    starts: np.ndarray
    ahead: np.ndarray
    place: np.ndarray
    x: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        """n x dimension, of rows that are there."""
        rows = rows.astype(np.int64)
        shift = (self.ahead - self.starts)[np.searchsorted(self.starts, rows, "right") - 1]
        return self.x[self.place[rows + shift]]


class QueryReader:
    """Reads the vectors of the rows that probe some lists.

    Memory is taken once, and used for one pass after the other.

    Parameters
    ----------
    vectors
        Where they come from, by row id.
    shards
        Whose rows are the queries, ascending.
    is_copy
        bool[N] or None: rows left out.
    like
        A vector: [1, dim].
    most
        Rows of a pass, about.
    """

    def __init__(
        self,
        vectors: Features,
        shards: list[QueryShard],
        is_copy: np.ndarray | None,
        like: np.ndarray,
        most: int,
        workers: int = 0,
    ) -> None:
        self.vectors, self.shards, self.is_copy, self.workers = vectors, shards, is_copy, workers
        sizes = [shard.rows for shard in shards]
        starts, ahead = np.array([shard.start for shard in shards], np.int64), np.cumsum(sizes)
        # What no pass fills is never touched, and so takes no memory.
        x = np.empty((min(most, sum(sizes)), *like.shape[1:]), like.dtype)
        self._held = QueryVectors(starts, ahead - sizes, np.empty(sum(sizes), np.uint32), x)

    @classmethod
    def of(
        cls,
        vectors: Rows,
        shards: list[QueryShard],
        is_copy: np.ndarray | None,
        most: int,
        workers: int = 0,
    ) -> QueryReader | None:
        """A reader where it pays: of more features than memory maps are used for."""
        start = next((shard.start for shard in shards if shard.rows), None)
        if start is None or not isinstance(vectors, Features):
            return None
        like = vectors.take(np.array([start]))
        if may_map(len(vectors) * like.nbytes):
            return None
        return cls(vectors, shards, is_copy, like, most, workers)

    def read(self, *lists: np.ndarray) -> QueryVectors:
        """Of all rows that probe these lists; what was read before is gone then."""
        numbers = np.concatenate(lists)
        rows = [*ordered_map(lambda s: self._asking(s, numbers), self.shards, self.workers)]
        ends = np.cumsum([len(own) for own in rows]).tolist()
        held = self._held
        if ends[-1] > len(held.x):
            x = np.empty((ends[-1], *held.x.shape[1:]), held.x.dtype)
            held = self._held = replace(held, x=x)

        def fill(number: int) -> None:
            own, end = rows[number], ends[number]
            start = end - len(own)
            self.vectors.take(own + self.shards[number].start, held.x[start:end])
            held.place[own + held.ahead[number]] = np.arange(start, end)

        for _ in ordered_map(fill, range(len(rows)), self.workers):
            trim()
        return held

    def _asking(self, shard: QueryShard, numbers: np.ndarray) -> np.ndarray:
        """Rows in shard, ascending."""
        asked = np.zeros(shard.rows, np.bool_)
        _mark(numbers, shard.probe_offsets, shard.probe_rows, asked)
        if self.is_copy is not None:
            asked &= ~self.is_copy[shard.start : shard.start + len(asked)]
        return np.flatnonzero(asked)
