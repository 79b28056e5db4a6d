"""From candidates to pairs: the finest distance at hand decides.

Tiers, from fine to coarse: `raw` (features as given), `snip` (compressed features), `codes` (the
index alone). Candidates are thinned by SNIP distance before raw rows are read, in order of their
place in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numba import njit

from .features import as_float32
from .storage.external_sort import LOW, SHIFT, distinct, sorted_keys

BLOCK, THINNED = 1 << 16, 1 << 20


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _distances(x, left, right, unknown, out):
    """2 - 2 cosine of rows of x, summed in float64; `unknown` where a row is all zeros."""
    dim = x.shape[1]
    norms = np.empty(x.shape[0], np.float64)
    for i in range(x.shape[0]):
        total = 0.0
        for d in range(dim):
            total += np.float64(x[i, d]) * np.float64(x[i, d])
        norms[i] = np.sqrt(total)
    for k in range(left.shape[0]):
        i, j = left[k], right[k]
        dot = 0.0
        for d in range(dim):
            dot += np.float64(x[i, d]) * np.float64(x[j, d])
        lengths = norms[i] * norms[j]
        out[k] = max(0.0, 2.0 - 2.0 * dot / lengths) if lengths > 0 else unknown


def distances(
    features: Rows,
    left: np.ndarray,
    right: np.ndarray,
    unknown: float = 2.0,
    held: Rows | None = None,
) -> np.ndarray:
    """Squared L2 distance of L2-normalised rows.

    Parameters
    ----------
    left, right
        uint64[m], row ids.
    unknown
        Distance to a row of zeros: SNIP features of a row at right angles to all that the net sees.
    held
        Where the rows on the left are taken from, if they are in memory.

    Returns
    -------
    float32[m]
    """
    out = np.empty(len(left), np.float32)
    for start in range(0, len(left), BLOCK):
        part = slice(start, start + BLOCK)
        x, one, other = _both(features, left[part], right[part], held)
        value = np.empty(len(one), np.float64)
        _distances(as_float32(x) if x.itemsize < 8 else x, one, other, unknown, value)
        out[part] = value
    return out


def _both(
    features: Rows, left: np.ndarray, right: np.ndarray, held: Rows | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of both sides, each once where all are read, and where each side has them there."""
    if held is None:
        ids, place = np.unique(np.concatenate([left, right]), return_inverse=True)
        return features.take(ids), place[: len(left)], place[len(left) :]
    (a, one), (b, other) = (np.unique(side, return_inverse=True) for side in (left, right))
    return np.concatenate([held.take(a), features.take(b)]), one, other + len(a)


class Rows(Protocol):
    """Vectors by row id."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """n x dimension."""


class Coded(Protocol):
    """Rows as the index alone knows them."""

    def estimates(self, left: np.ndarray, right: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Squared distances for those of decoded codes, on the scale of the raw ones: float32."""


@dataclass
class Pairs:
    """Pairs of rows as the join finds them, candidates too.

    Attributes
    ----------
    row, earlier_row
        uint64[n], row ids.
    distance
        float32[n], squared; of candidates the excess (see `join`), which is the distance of the
        codes where queries are decoded codes too.
    """

    row: np.ndarray
    earlier_row: np.ndarray
    distance: np.ndarray

    @classmethod
    def empty(cls) -> Pairs:
        """No pairs."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32))

    @classmethod
    def concatenate(cls, parts: list[Pairs]) -> Pairs:
        """One after the other."""
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in FIELDS))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: np.ndarray | slice) -> Pairs:
        return Pairs(self.row[chosen], self.earlier_row[chosen], self.distance[chosen])

    def ordered(self) -> Pairs:
        """Sorted by (row, earlier_row), each pair once."""
        if not len(self):
            return self
        result = self[self._order()]
        new = np.ones(len(result), bool)
        new[1:] = (result.row[1:] != result.row[:-1]) | (
            result.earlier_row[1:] != result.earlier_row[:-1]
        )
        return result if new.all() else result[new]

    def _order(self) -> np.ndarray:
        low, wide = self.row.min(), np.uint64(1 << 32)
        if self.earlier_row.max() >= wide or self.row.max() - low >= wide:
            return np.lexsort((self.earlier_row, self.row))
        # One key is sorted several times faster than two.
        return np.argsort((self.row - low) << np.uint64(32) | self.earlier_row)


FIELDS = ("row", "earlier_row", "distance")


@dataclass(frozen=True)
class Verifier:
    """Decides which candidates are pairs.

    Attributes
    ----------
    raw, snip
        The features at hand; the finest decides.
    max_distance
        On the deciding distance.
    snip_limit
        Candidates beyond this SNIP distance are no pairs: not read from the raw features, or, where
        the SNIP features decide, scaled to lie beyond `max_distance`.
    codes
        What estimates distances where no features are at hand.
    queries
        SNIP features of later rows, if they are in memory.
    """

    raw: Rows | None
    snip: Rows | None
    max_distance: float
    snip_limit: float
    codes: Coded | None = None
    queries: Rows | None = None

    def asked_by(self, queries: Rows) -> Verifier:
        """The same, where the SNIP features of all later rows are at hand."""
        return self if self.snip is None else replace(self, queries=queries)

    def __call__(self, candidates: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Which candidates are pairs.

        Returns
        -------
        places : int64[m]
            Ascending.
        distance : float32[m]
        """
        places, distance = np.arange(len(candidates)), candidates.distance
        for measure, limit in self._measures():
            distance = measure(candidates[places])
            near = distance <= np.float32(limit)
            places, distance = places[near], distance[near]
        return places, distance

    def _measures(self) -> Iterator[tuple[Callable[[Pairs], np.ndarray], float]]:
        """Distances to look at, the coarsest first, and how large each may be."""
        codes, raw = self.codes, self.raw
        if codes is not None:
            yield lambda p: codes.estimates(p.row, p.earlier_row, p.distance), self.max_distance
        if self.snip is not None and raw is not None:
            # Where the SNIP features tell nothing, the raw ones decide.
            yield lambda p: self._snip_distances(p, unknown=0.0), self.snip_limit
        elif self.snip is not None:
            # On the scale of the raw ones: who groups pairs looks at `max_distance`.
            factor = np.float32(self.max_distance / max(self.snip_limit, 1e-6))
            yield lambda p: factor * self._snip_distances(p), self.max_distance
        if raw is not None:
            yield lambda p: distances(raw, p.row, p.earlier_row), self.max_distance

    def _snip_distances(self, pairs: Pairs, unknown: float = 2.0) -> np.ndarray:
        assert self.snip is not None
        return distances(self.snip, pairs.row, pairs.earlier_row, unknown, self.queries)


@njit(nogil=True, cache=True)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(nogil=True, cache=True)
def _nearest(starts, distance, limit):
    """Which pairs a row keeps in any case: its nearest ones, and the first."""
    keep = np.zeros(distance.shape[0], np.bool_)
    for r in range(starts.shape[0] - 1):
        low, high = starts[r], starts[r + 1]
        if high - low <= limit:
            keep[low:high] = True
        else:
            for p in np.argsort(distance[low:high], kind="mergesort")[:limit]:
                keep[low + p] = True
            keep[low] = True
    return keep


@njit(nogil=True, cache=True)
def _connect(keys, node, partner, keep, nodes):
    """Keep the pairs too whose ends are not connected by nearer ones (Kruskal's algorithm)."""
    parent = np.arange(nodes)
    for key in keys:
        k = np.int64(key & LOW)
        a, b = _root(parent, node[k]), _root(parent, partner[k])
        if a != b:
            parent[max(a, b)] = min(a, b)
            keep[k] = True


def thin(pairs: Pairs, limit: int) -> Pairs:
    """Keep at most about `limit` earlier partners a row without splitting a component.

    A row with more partners keeps its nearest `limit`, its lowest one (the *star* that the rows
    of a large group have in common), and pairs whose ends no nearer pairs connect. So what is left
    has the components of all pairs, at any smaller threshold too; and it is the same whether some
    were thinned before or not.

    Parameters
    ----------
    pairs
        Sorted by (row, earlier_row).
    """
    if len(pairs) <= limit:
        return pairs
    new = np.flatnonzero(np.diff(pairs.row, prepend=pairs.row[0] ^ np.uint64(1)))
    starts = np.append(new, len(pairs))
    if np.diff(starts).max() <= limit:
        return pairs
    blocks = [slice(s, s + THINNED) for s in range(0, len(pairs), THINNED)]
    ends = [distinct(own[block]) for own in (pairs.row, pairs.earlier_row) for block in blocks]
    names = distinct(np.concatenate(ends))
    node, partner = (_places(names, own, blocks) for own in (pairs.row, pairs.earlier_row))
    keep = _nearest(starts, pairs.distance, limit)
    # By distance, which is no negative number, so its bits rise with it; equal ones by their rows.
    keys = pairs.distance.view(np.uint32).astype(np.uint64) << SHIFT
    keys |= np.arange(len(pairs), dtype=np.uint64)
    _connect(sorted_keys(keys), node, partner, keep, len(names))
    return pairs[keep]


def _places(names: np.ndarray, ids: np.ndarray, blocks: list[slice]) -> np.ndarray:
    """Where each is among the names, in half of the room that `np.unique` takes for it."""
    out = np.empty(len(ids), np.int32 if len(names) < 1 << 31 else np.int64)
    for block in blocks:
        out[block] = np.searchsorted(names, ids[block])
    return out
