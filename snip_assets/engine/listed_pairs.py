"""Pairs on their way: of a list, of a shard; thinned before they become too many."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .verify import Pairs, thin

# Pairs of a list that are thinned before its end, and of a shard before its last list.
THIN_AT, MERGE_AT = 1 << 18, 1 << 23


class Listed:
    """Pairs of a list as they are found, thinned whenever they have doubled.

    Many near copies in one list would have as many pairs as their square. All pairs of a row come
    at once, rows ascending, so thinning on the way leaves what it would leave at the end.

    Parameters
    ----------
    most
        See `verify.thin`.
    starts
        uint64[S]: first row id of each shard.
    """

    def __init__(self, most: int, starts: np.ndarray) -> None:
        self.most, self.starts = most, starts
        self.parts: list[Pairs] = []
        self.size, self._limit = 0, THIN_AT

    def add(self, pairs: Pairs) -> None:
        """Add some, sorted, of rows that come after those before."""
        self.parts.append(pairs)
        self.size += len(pairs)
        if self.size >= self._limit:
            self.parts = [Pairs.concatenate(self.by_shard())]
            self.size = len(self.parts[0])
            self._limit = max(THIN_AT, 2 * self.size)

    def by_shard(self) -> list[Pairs]:
        """Take them, cut by shard and then thinned: so they do not depend on the grouping."""
        pairs = _taken(self)
        cuts = [*np.searchsorted(pairs.row, self.starts).tolist(), len(pairs)]
        return [thin(pairs[slice(low, high)], self.most) for low, high in pairwise(cuts)]


class Merged:
    """Pairs of a shard list by list, thinned whenever they are half as many again.

    A group of near copies that is spread over many short lists has as many pairs as its square,
    and in none of them as many as are thinned there.

    Attributes
    ----------
    size
        Pairs held.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[Pairs] = []
        self.size, self._limit = 0, MERGE_AT

    def add(self, pairs: Pairs) -> None:
        """Add those of a list; the lists in order, as what connects a group depends on it."""
        self.parts.append(pairs)
        self.size += len(pairs)
        if self.size >= self._limit:
            self.parts = [self.taken()]
            self.size = len(self.parts[0])
            self._limit = max(MERGE_AT, self.size + self.size // 2)

    def taken(self) -> Pairs:
        """Take all of them, sorted and thinned."""
        return thin(_taken(self).ordered(), self.most)


def _taken(pairs: Listed | Merged) -> Pairs:
    """All that is held, which is not held twice."""
    parts, pairs.parts = pairs.parts, []
    return Pairs.concatenate(parts)


@dataclass
class Counts:
    """What a join did."""

    products: int = 0
    candidates: int = 0
    lists: int = 0

    def add(self, other: Counts) -> None:
        """Add the products and candidates of another."""
        self.products += other.products
        self.candidates += other.candidates


@dataclass
class Joined:
    """What some lists have given: pairs of each, and candidates that wait to be verified.

    Attributes
    ----------
    found
        Pairs of each list that was asked anything.
    counts
        What it took.
    """

    found: list[Listed]
    counts: Counts
    _waiting: list[tuple[int, Pairs]] = field(default_factory=list)
    _size: int = 0

    def __len__(self) -> int:
        return self._size

    def wait(self, position: int, candidates: Pairs) -> None:
        """Hold candidates of a list, sorted by (row, earlier_row), those of a row together."""
        self._waiting.append((position, candidates))
        self._size += len(candidates)

    def taken(self) -> tuple[np.ndarray, Pairs]:
        """Positions in `found` and candidates of all that wait; none wait any more."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        owner = np.repeat([p for p, _ in waiting], [len(own) for _, own in waiting])
        return owner, Pairs.concatenate([own for _, own in waiting])

    def add(
        self, owner: np.ndarray, candidates: Pairs, places: np.ndarray, distance: np.ndarray
    ) -> None:
        """Add those of the candidates that are pairs, as `Verifier` tells them."""
        pairs = Pairs(candidates.row[places], candidates.earlier_row[places], distance)
        cuts = np.searchsorted(owner[places], np.arange(len(self.found) + 1))
        for own, (low, high) in zip(self.found, pairwise(cuts.tolist()), strict=True):
            if high > low:
                own.add(pairs[slice(low, high)])

    def merge(self, merged: list[Merged]) -> None:
        """Add the pairs to those of their shards, when none wait any more."""
        for own in self.found:
            if own.size:
                for shard, pairs in zip(merged, own.by_shard(), strict=True):
                    if len(pairs):
                        shard.add(pairs)
