"""The join: candidate pairs, list by list, as matrix products.

A pair (query row i, earlier row j) is a candidate when

    ADC(i, j) - ADC(i, i) <= slack,

where ADC(i, j) is the squared distance of the exact SNIP feature of i to the decoded code of j and
ADC(i, i) the quantisation error of i itself: a threshold that adapts to each query.

The same must hold in a few leading axes of the residuals, with a slack of their own (a rotation
puts half of the energy into a quarter of the axes): true pairs differ as little there as anywhere,
most other rows already differ too much. So a list is read once, its codes are decoded onto those
axes, one small matrix product and a fused scan throw out nearly everything, and the few rows that
remain get their exact ADC. Both conditions are computed in one fixed order of summation, the
product only preselects with a margin for its rounding: hence candidates do not depend on block
sizes, threads, or which shards are joined together.

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
CHUNK = 32
_FLAGS = {"nnan", "nsz", "reassoc", "contract"}


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _scan(score, bound, stop, start, base, found_query, found_row, count):
    """Append (query, row) where score >= bound and row < stop; -1 when the buffer is full."""
    columns = score.shape[1]
    room = found_query.shape[0] - CHUNK
    for i in range(score.shape[0]):
        end = min(stop[i] - base, columns)
        floor = bound[i]
        whole = end - end % CHUNK
        for low in range(0, whole, CHUNK):
            # This form is vectorised: a slice of fixed length, and no branch.
            chunk = score[i, low : low + CHUNK]
            some = np.int32(0)
            for j in range(CHUNK):
                some |= np.int32(chunk[j] >= floor)
            if some:
                if count > room:
                    return -1
                for j in range(CHUNK):
                    found_query[count] = start + i
                    found_row[count] = base + low + j
                    count += chunk[j] >= floor
        if count > room:
            return -1
        for j in range(whole, end):
            found_query[count] = start + i
            found_row[count] = base + j
            count += score[i, j] >= floor
    return count


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def project(x, axes):
    """Rows on axes, each summed in one fixed order (a BLAS product depends on the batch)."""
    out = np.zeros((x.shape[0], axes.shape[1]), np.float32)
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            value = x[i, d]
            for k in range(axes.shape[1]):
                out[i, k] += value * axes[d, k]
    return out


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _check(short, short_rows, x, rows, error, slacks, query, row, excess):
    """Keep the (query, row) entries whose short and whole excess are within the slacks."""
    kept = 0
    for k in range(query.shape[0]):
        i, j = query[k], row[k]
        total = np.float32(0.0)
        for d in range(short.shape[1]):
            difference = short[i, d] - short_rows[j, d]
            total += difference * difference
        if total - error[i, 0] > slacks[0]:
            continue
        total = np.float32(0.0)
        for d in range(x.shape[1]):
            difference = x[i, d] - rows[j, d]
            total += difference * difference
        value = total - error[i, 1]
        if value <= slacks[1]:
            query[kept], row[kept], excess[kept] = i, j, value
            kept += 1
    return kept


@dataclass(frozen=True)
class Rule:
    """When a pair is a candidate, and how to find it quickly.

    Attributes
    ----------
    slack
        Largest ADC(i, j) - ADC(i, i).
    short_slack
        The same on the leading axes alone.
    projector
        Decodes codes onto the leading axes of the residuals.
    """

    slack: float
    short_slack: float
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
        self.rows, self.rule = rows, rule
        self.centroid = index.trained.centroids[number]
        self._short = rule.projector(codes)
        # One more column takes half the squared norms into the product.
        norms = np.einsum("ij,ij->i", self._short, self._short)
        self._columns = torch.from_numpy(np.column_stack([self._short, -0.5 * norms])).T
        self._whole = index.trained.codec.decode(codes)

    def hits(self, ids: np.ndarray, x: np.ndarray, error: np.ndarray) -> Iterator[Hits]:
        """Candidates, a block of queries at a time.

        Parameters
        ----------
        ids
            uint64[q], ascending row ids of the queries.
        x
            float32[q, dim], their SNIP features.
        error
            float32[q, 2], their ADC(i, i) on the leading axes and as a whole.

        Yields
        ------
        Hits with positions in `ids` and in `self.rows`.
        """
        stop = np.searchsorted(self.rows, ids)
        slacks = np.array([self.rule.short_slack, self.rule.slack], np.float32)
        residual = x - self.centroid
        short = project(residual, self.rule.projector.axes)
        norms = np.einsum("ij,ij->i", short, short)
        # Rounding of the product must not lose a pair: widen the bound by its largest error.
        bound = 0.5 * (norms - error[:, 0] - slacks[0]) - np.float32(2e-5) * (1 + norms)
        wide = torch.from_numpy(np.column_stack([short, np.ones(len(short), np.float32)]))
        for query, row in self._preselected(wide, bound, stop):
            excess = np.empty(len(query), np.float32)
            operands = (short, self._short, residual, self._whole, error, slacks)
            kept = _check(*operands, query, row, excess)
            yield Hits(query[:kept], row[:kept], excess[:kept])

    def _preselected(self, queries, bound, stop) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Entries that pass on the leading axes, a few hundred thousand at a time, by query."""
        room = 1 << 18
        query, row, count = np.empty(room, np.int32), np.empty(room, np.int32), 0
        scores = torch.empty(QUERY_BLOCK * LIST_TILE)
        for start in range(0, len(bound), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            end = int(stop[part].max(initial=0))
            for base in range(0, end, LIST_TILE):
                columns = slice(base, min(base + LIST_TILE, end))
                left, right = queries[part], self._columns[:, columns]
                score = scores[: len(left) * right.shape[1]].view(len(left), -1)
                torch.mm(left, right, out=score)
                operands = (score.numpy(), bound[part], stop[part], start, base)
                while (found := _scan(*operands, query, row, count)) < 0:
                    query = np.concatenate([query, np.empty_like(query)])
                    row = np.concatenate([row, np.empty_like(row)])
                count = found
            # A query's hits stay together, so that its partners are judged in one piece.
            if count > room // 2:
                yield query[:count], row[:count]
                query, row, count = np.empty(room, np.int32), np.empty(room, np.int32), 0
        if count:
            yield query[:count], row[:count]


def leading_axes(residuals: np.ndarray, width: int) -> np.ndarray:
    """The principal axes of residuals, float32[dim, width], largest variance first."""
    wide = residuals.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    axes = vectors[:, ::-1][:, :width]
    sign = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.ascontiguousarray((axes * sign).astype(np.float32))
