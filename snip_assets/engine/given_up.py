"""Kept rows within `max_distance` of each other, since their pair was given up: one of them goes.

Of a row with more than `max_partners` earlier partners not all pairs are stored (`verify.thin`), so
the keep rule may let near copies stay. Few do, and they are compared here in the raw features. Of
two the one visited later goes; a row that is left without a kept neighbour is compared with the
kept rows of its group, and only where none is near may stay. Groups without such rows are not
looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .features import as_float32, at_least, normalised
from .kernels import keep_loops
from .pair_files import PairBlock, Paired
from .shards import Registry, raw_features
from .verify import Rows, distances

if TYPE_CHECKING:
    from .keep import Decision

BLOCK, ROUND = 2048, 256
# Kept rows of a group that are all compared with each other.
FEW = 1 << 14
# What float32 may be off in a product of rows of unit length, generously.
ROUNDING = 1e-4


@dataclass(frozen=True)
class GivenUp:
    """Measures pairs that are not stored, in the raw features.

    Attributes
    ----------
    raw
        Raw features.
    max_partners
        Rows with so many earlier partners may have more than are stored.
    max_distance
        As in `Settings`.
    """

    raw: Rows
    max_partners: int
    max_distance: float

    @classmethod
    def of(
        cls, made: list[dict[str, Any]], registry: Registry, max_distance: float
    ) -> GivenUp | None:
        """For pairs made with these facts; None unless raw features decided about all of them."""
        if any(facts.get("tier") != "raw" for facts in made):
            return None
        return cls(raw_features(registry), min(f["max_partners"] for f in made), max_distance)

    def settle(self, paired: Paired, decision: Decision, labels: np.ndarray) -> list[PairBlock]:
        """Change the decision so that no two kept rows of a group are near.

        Memory: 10 bytes a row that is in a pair (18 from 2^32 rows on), 24 bytes a pair that is
        found, and two blocks of rows.

        Parameters
        ----------
        labels
            [N], group of each row.

        Returns
        -------
        Pairs by place that explain what goes now, beside those of `paired`.
        """
        thinned = self._thinned(paired, decision)
        if not thinned.any():
            return []
        dropped, group = decision.dropped, labels[paired.ids[decision.survivor]]
        case = _Case(self.raw, self.max_distance, paired, decision, group)
        kept = np.flatnonzero(~dropped & np.isin(group, group[thinned]))
        _, place, count = np.unique(group[kept], return_inverse=True, return_counts=True)
        # The index loses pairs of other rows as well, where a large group spans many lists.
        asked = kept[thinned[kept] | (count[place] <= FEW)]
        found = [case.sweep(asked, kept)]
        if not len(found[0].row):
            return []
        explained = np.zeros(len(dropped), np.bool_)
        for pairs in (*(block for block, _ in paired.blocks("Groups of near copies")), *found):
            _explain(pairs.row, pairs.earlier_row, decision.rank, dropped, explained)
        orphans = np.flatnonzero(dropped & ~explained)
        found.append(case.near(orphans, kept[~dropped[kept]]))
        _explain(found[-1].row, found[-1].earlier_row, decision.rank, dropped, explained)
        alone = orphans[~explained[orphans]]
        while len(alone):
            # A few at a time: all of them together may have as many pairs as their square.
            first, alone = alone[:ROUND], alone[ROUND:]
            dropped[first] = False
            found.append(case.sweep(first, first))
            found.append(case.near(alone, first[~dropped[first]]))
            _explain(found[-1].row, found[-1].earlier_row, decision.rank, dropped, explained)
            alone = alone[~explained[alone]]
        return found

    def _thinned(self, paired: Paired, decision: Decision) -> np.ndarray:
        """bool[ranks]: which classes may have pairs that are not stored."""
        partners = np.zeros(len(paired.ids), paired.ids.dtype)
        for pairs, _ in paired.blocks("Partners"):
            _count(pairs.row, partners)
        thinned = np.zeros(len(decision.dropped), np.bool_)
        thinned[decision.rank[partners >= self.max_partners]] = True
        return thinned


@dataclass(frozen=True)
class _Case:
    """A decision, and what measures its classes: these by rank, with the group of each."""

    raw: Rows
    max_distance: float
    paired: Paired
    decision: Decision
    group: np.ndarray

    def sweep(self, one: np.ndarray, other: np.ndarray) -> PairBlock:
        """Drop the later visited of each two near ones, all of them kept."""
        pairs = self.near(one, other)
        later, earlier = keep_loops.ends(*pairs, np.float32(np.inf), self.decision.rank)
        order = np.argsort(later, kind="stable")
        keep_loops.sweep(later[order], earlier[order], self.decision.dropped)
        return pairs

    def near(self, one: np.ndarray, other: np.ndarray) -> PairBlock:
        """Pairs of classes with other ones of their group, by place."""
        group, ids, survivor = self.group, self.paired.ids, self.decision.survivor
        one, other = (ranks[np.argsort(group[ranks], kind="stable")] for ranks in (one, other))
        cuts = np.flatnonzero(np.diff(group[one], prepend=group[one][:1])).tolist()
        columns = []
        for low, high in pairwise([0, *cuts, len(one)]):
            if low == high:
                continue
            own = group[one[low]]
            first, last = np.searchsorted(group[other], [own, own + own.dtype.type(1)])
            theirs = survivor[other[first:last]]
            for left, right in self._candidates(survivor[one[low:high]], theirs):
                far = distances(self.raw, *(ids[a].astype(np.uint64) for a in (left, right)))
                near = far <= np.float32(self.max_distance)
                columns.append((left[near], right[near], far[near]))
        if not columns:
            return PairBlock(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32)))
        row, earlier, distance = (np.concatenate(c) for c in zip(*columns, strict=True))
        return PairBlock(row.astype(np.int64), earlier.astype(np.int64), distance)

    def _candidates(
        self, one: np.ndarray, other: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of two rows that float32 finds near, or nearly."""
        ids, floor = self.paired.ids, 1 - self.max_distance / 2 - ROUNDING
        for start in range(0, len(one), BLOCK):
            own = one[start : start + BLOCK]
            x = self._rows(ids[own])
            for begin in range(0, len(other), BLOCK):
                others = other[begin : begin + BLOCK]
                left, right = at_least(x @ self._rows(ids[others]).T, floor)
                apart = own[left] != others[right]
                yield own[left[apart]], others[right[apart]]

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        order = np.argsort(ids, kind="stable")
        x = np.asarray(self.raw.take(ids[order]))
        x = as_float32(x) if x.itemsize < 8 else x
        out = np.empty(x.shape, np.float32)
        out[order] = normalised(x / np.abs(x).max(axis=1, keepdims=True))
        return out


@numba.njit(nogil=True, cache=True)
def _count(row, partners):
    """Count the earlier partners of each row."""
    for place in row:
        partners[place] += 1


@numba.njit(nogil=True, cache=True)
def _explain(row, earlier_row, rank, dropped, explained):
    """Mark the dropped classes that have a kept neighbour."""
    for i in range(len(row)):
        a, b = rank[row[i]], rank[earlier_row[i]]
        if dropped[a] != dropped[b]:
            explained[a if dropped[a] else b] = True
