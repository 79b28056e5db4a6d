"""Candidates of many lists, verified together in order of their earlier rows.

Those of a list lie all over the files: to read their rows list by list takes a call to the system
for each of them, or a page of the disk. What many lists ask for lies close together, and some rows
come in at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from .listed_pairs import Joined, Merged
from .verify import Pairs, Verifier

# Candidates that are verified together, and of these at once by a thread; about 40 bytes each.
VERIFY_AT, VERIFY_PART, LEAST_PART = 1 << 20, 1 << 14, 1 << 12
# Parts that wait for their turn.
MOST_PARTS = 16


class _Batch:
    """Candidates of some lists, and which of them are pairs."""

    def __init__(self, joined: list[Joined]) -> None:
        self._joined = joined
        self._owners, candidates = zip(*[one.taken() for one in joined], strict=True)
        self._candidates = Pairs.concatenate(list(candidates))
        self._order = np.argsort(self._candidates.earlier_row)
        self._near = np.zeros(len(self._order), bool)
        self._distance = np.empty(len(self._order), np.float32)
        self._left = 0

    def parts(self, verifier: Verifier) -> Iterator[Callable[[], _Batch]]:
        """Work that verifies them, for threads; at least one piece of it."""
        count = len(self._order)
        size = min(VERIFY_PART, max(LEAST_PART, count // MOST_PARTS))
        for start in range(0, max(1, count), size):
            self._left += 1
            yield partial(self._verify, verifier, slice(start, start + size))

    def _verify(self, verifier: Verifier, part: slice) -> _Batch:
        places = self._order[part]
        near, distance = verifier(self._candidates[places])
        self._near[places[near]] = True
        self._distance[places[near]] = distance
        return self

    def finish(self, merged: list[Merged]) -> None:
        """Note that a part is done; after the last one, add the pairs to those of the shards."""
        self._left -= 1
        if self._left:
            return
        start = 0
        for joined, owner in zip(self._joined, self._owners, strict=True):
            own = slice(start, start + len(owner))
            places = np.flatnonzero(self._near[own])
            joined.add(owner, self._candidates[own], places, self._distance[own][places])
            joined.merge(merged)
            start = own.stop


class Waiting:
    """Joined lists whose candidates wait to be verified.

    Parameters
    ----------
    verifier
        What verifies them.
    merged
        Where pairs go, a shard each; in the order of the lists.
    """

    def __init__(self, verifier: Verifier, merged: list[Merged]) -> None:
        self._verifier, self._merged = verifier, merged
        self._joined: list[Joined] = []
        self._size = 0
        self._parts: deque[Callable[[], _Batch]] = deque()

    def beside(
        self, joins: Iterable[Callable[[], Joined]]
    ) -> Iterator[Callable[[], Joined | _Batch]]:
        """Work for threads: that which joins lists, and verifies in between what waits.

        So that a thread may wait for the disk while another one compares.
        """
        for join in joins:
            yield join
            while self._parts:
                yield self._parts.popleft()
                if len(self._parts) < MOST_PARTS:
                    break

    def rest(self) -> Iterator[Callable[[], _Batch]]:
        """The work that is left."""
        if self._joined:
            self._begin()
        while self._parts:
            yield self._parts.popleft()

    def take(self, done: Joined | _Batch) -> None:
        """Take in the result of a piece of work; in the order in which they were given out."""
        if isinstance(done, _Batch):
            done.finish(self._merged)
            return
        self._joined.append(done)
        self._size += len(done)
        if self._size >= VERIFY_AT:
            self._begin()

    def _begin(self) -> None:
        batch = _Batch(self._joined)
        self._joined, self._size = [], 0
        self._parts.extend(batch.parts(self._verifier))
