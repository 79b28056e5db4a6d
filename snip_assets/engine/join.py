"""The join: candidate pairs, list by list, as matrix products.

A pair (query row i, earlier row j) is a candidate when

    ADC(i, j) - ADC(i, i) <= slack,

where ADC(i, j) is the squared distance of the exact SNIP feature of i to the decoded code of j and
ADC(i, i) the quantisation error of i itself: a threshold that adapts to each query.

A list is read once. Its codes are decoded onto a few leading axes of the residuals (a rotation
puts most of their energy there), one matrix product gives a lower bound of every ADC, and a fused
scan keeps what is under the threshold: a distance in a subspace never exceeds the whole one, so
nothing is lost. The few that remain get their exact ADC in one fixed order of summation, hence the
candidates do not depend on block sizes, threads, or which shards are joined together.

Only earlier rows are compared, and there is no limit on hits a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from .codec import Projector
from .index import SnipIndex

QUERY_BLOCK = 256
LIST_TILE = 1024
_FLAGS = {"nnan", "nsz", "reassoc", "contract"}


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _scan(score, bound, stop, base, query, found_query, found_row, count):
    """Append (query, row) where score >= bound and row < stop; -1 when the buffer is full."""
    columns = score.shape[1]
    for i in range(score.shape[0]):
        end = min(stop[i] - base, columns)
        floor = bound[i]
        for low in range(0, end, 64):
            high = min(low + 64, end)
            best = score[i, low]
            for j in range(low, high):
                best = max(best, score[i, j])
            if best < floor:
                continue
            for j in range(low, high):
                if score[i, j] >= floor:
                    if count == found_query.shape[0]:
                        return -1
                    found_query[count] = query + i
                    found_row[count] = base + j
                    count += 1
    return count


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _excess_pq(x, codes, book, query, row, error, out):
    """ADC - error of (query, row) entries for product quantisers."""
    dsub = book.shape[2]
    for k in range(query.shape[0]):
        i, j = query[k], row[k]
        total = np.float32(0.0)
        for m in range(codes.shape[1]):
            code = codes[j, m]
            for d in range(dsub):
                difference = x[i, m * dsub + d] - book[m, code, d]
                total += difference * difference
        out[k] = total - error[i]


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _excess(x, decoded, query, row, error, out):
    """ADC - error of (query, row) entries from decoded residuals."""
    for k in range(query.shape[0]):
        i, j = query[k], row[k]
        total = np.float32(0.0)
        for d in range(x.shape[1]):
            difference = x[i, d] - decoded[j, d]
            total += difference * difference
        out[k] = total - error[i]


@dataclass(frozen=True)
class Rule:
    """When a pair is a candidate, and how to find it quickly.

    Attributes
    ----------
    slack
        Largest ADC(i, j) - ADC(i, i).
    projector
        Decodes codes onto the leading axes of the residuals, for the lower bound.
    """

    slack: float
    projector: Projector


@dataclass
class Hits:
    """Candidates of a block of queries in one list: positions, and ADC(i, j) - ADC(i, i)."""

    query: np.ndarray
    row: np.ndarray
    excess: np.ndarray


class ListJoin:
    """Join of one inverted list with the rows that probe it.

    Parameters
    ----------
    index
        Where the list's rows and codes are.
    rule
        See `Rule`.
    number
        The list.
    is_copy
        bool[N] or None: rows left out (later exact copies).
    """

    def __init__(
        self, index: SnipIndex, rule: Rule, number: int, is_copy: np.ndarray | None = None
    ) -> None:
        rows, codes = index.read_list(number)
        if is_copy is not None and len(rows):
            keep = ~is_copy[rows.astype(np.int64)]
            if not keep.all():
                rows, codes = rows[keep], codes[keep]
        self.rows, self.codes, self.rule = rows, codes, rule
        self.centroid = index.trained.centroids[number]
        self.codec = index.trained.codec
        decoded = rule.projector(codes)
        self._decoded = torch.from_numpy(np.ascontiguousarray(decoded))
        self._bias = -0.5 * (self._decoded**2).sum(1)
        self._full = None if self.codec.book is not None else self.codec.decode(codes)

    def hits(self, ids: np.ndarray, x: np.ndarray, error: np.ndarray) -> Iterator[Hits]:
        """Candidates, a block of queries at a time.

        Parameters
        ----------
        ids
            uint64[q], ascending row ids of the queries.
        x
            float32[q, dim], their SNIP features.
        error
            float32[q], their ADC(i, i).

        Yields
        ------
        Hits with positions in `ids` and in `self.rows`.
        """
        stop = np.searchsorted(self.rows, ids)
        residual = np.ascontiguousarray(x - self.centroid)
        short = residual @ self.rule.projector.axes
        norms = np.einsum("ij,ij->i", short, short)
        reach = error + np.float32(self.rule.slack)
        # Rounding of the product must not lose a pair: widen the bound by its largest error.
        bound = 0.5 * (norms - reach) - np.float32(2e-5) * (1 + norms)
        queries = torch.from_numpy(short)
        for start in range(0, len(ids), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            query, row = self._block(queries[part], bound[part], stop[part], start)
            excess = np.empty(len(query), np.float32)
            if self._full is None:
                _excess_pq(residual, self.codes, self.codec.book, query, row, error, excess)
            else:
                _excess(residual, self._full, query, row, error, excess)
            near = excess <= self.rule.slack
            yield Hits(query[near], row[near], excess[near])

    def _block(self, queries, bound, stop, start):
        end = int(stop.max(initial=0))
        capacity = 1 << 14
        query, row = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        count = 0
        for base in range(0, end, LIST_TILE):
            high = min(base + LIST_TILE, end)
            score = torch.addmm(self._bias[base:high], queries, self._decoded[base:high].T).numpy()
            while True:
                found = _scan(score, bound, stop, base, start, query, row, count)
                if found >= 0:
                    break
                query = np.concatenate([query, np.empty_like(query)])
                row = np.concatenate([row, np.empty_like(row)])
            count = found
        return query[:count], row[:count]


def leading_axes(residuals: np.ndarray, width: int) -> np.ndarray:
    """The principal axes of residuals, float32[dim, width], largest variance first."""
    wide = residuals.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    axes = vectors[:, ::-1][:, :width]
    sign = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.ascontiguousarray((axes * sign).astype(np.float32))
