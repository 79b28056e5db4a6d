"""The join: candidate pairs, list by list, as matrix products.

A pair (query row i, earlier row j) is a candidate when

    ADC(i, j) - ADC(i, i) <= slack,

where ADC(i, j) is the squared distance of the exact SNIP feature of i to the decoded code of j and
ADC(i, i) the quantisation error of i itself: a threshold that adapts to each query.

The same must hold in a few leading axes of the residuals, with a slack of their own (a rotation
puts half of the energy into a quarter of the axes): true pairs differ as little there as anywhere,
most other rows already differ too much. So a list is read once, its codes are decoded onto those
axes, one small matrix product throws out nearly everything, and one scan of it computes the ADC of
the few rows that remain. The product is exact (see `axes`) and each ADC has one fixed order of
summation: hence candidates do not depend on block sizes, threads, or which shards are joined
together.

Only earlier rows are compared, and there is no limit on hits a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numba import njit

from .axes import Axes
from .index import SnipIndex
from .kernels import LANES, QUERIES, compare, lowest_bit, panels, queries

# Queries that meet a panel of rows while it lies in the nearest cache: a multiple of QUERIES.
GROUP = 64 // QUERIES * QUERIES
ROOM = 1 << 18
# Products held on another device at once: 256 MB, and as much for comparing them.
DEVICE_SCORES = 1 << 26
CPU = torch.device("cpu")
_FLAGS = {"nnan", "nsz", "reassoc", "contract"}


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _distance(x, i, rows, j):
    """ADC, in one order of summation wherever it is computed."""
    total = np.float32(0.0)
    for d in range(x.shape[1]):
        difference = x[i, d] - rows[j, d]
        total += difference * difference
    return total


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def scan(
    listed, norms, short, bound, stop, x, rows, error, slack, start, group, query, row, excess
):
    """Find candidates, group by group of queries, until half of the room is taken.

    A candidate is a (query, row) with row < stop of the query, a short product less the row's norm
    >= its bound, and an excess <= slack.

    Returns
    -------
    The query to go on with, and the number of candidates: -1 when one group needs more room.
    """
    masks = np.empty(QUERIES, np.uint32)
    count = 0
    while start < bound.shape[0] and 2 * count <= query.shape[0]:
        end = min(start + group, bound.shape[0])
        complete, last = count, 0
        for i in range(start, min(end, stop.shape[0])):
            last = max(last, stop[i])
        for number in range((last + LANES - 1) // LANES):
            base = number * LANES
            for first in range(start, end, QUERIES):
                compare(listed, norms, number, short, first, bound, masks)
                if count + QUERIES * LANES > query.shape[0]:
                    return start, complete if complete > 0 else -1
                for own in range(QUERIES):
                    mask, i = masks[own], first + own
                    if mask == 0:
                        continue
                    while mask != 0:
                        j = base + lowest_bit(mask)
                        mask &= mask - np.uint32(1)
                        if j >= stop[i]:
                            break
                        over = _distance(x, i, rows, j) - error[i]
                        query[count], row[count], excess[count] = i, j, over
                        count += over <= slack
        start = end
    return start, count


@dataclass(frozen=True)
class Rule:
    """When a pair is a candidate, and how to find it quickly.

    Attributes
    ----------
    slack
        Largest ADC(i, j) - ADC(i, i).
    short_slack
        The same on the leading axes alone.
    axes
        The leading axes.
    """

    slack: float
    short_slack: float
    axes: Axes

    @cached_property
    def short_steps(self) -> float:
        """`short_slack` in squared steps of the axes."""
        return self.axes.steps(self.short_slack)


@dataclass
class Hits:
    """Candidates in one list, by (query, row): positions, and ADC(i, j) - ADC(i, i)."""

    query: np.ndarray
    row: np.ndarray
    excess: np.ndarray

    def ordered(self) -> Hits:
        """By query; what was found panel by panel has its rows in order already."""
        if not (self.query[1:] < self.query[:-1]).any():
            return self
        order = np.argsort(self.query, kind="stable")
        return Hits(self.query[order], self.row[order], self.excess[order])


class ListJoin:
    """Join of one inverted list with the rows that probe it.

    Parameters
    ----------
    index
        Where the list's rows and codes are.
    rule
        See `Rule`.
    book
        What `Axes.book` gives of the index's codec.
    number
        The list.
    is_copy
        bool[N] or None: rows left out (later exact copies).
    device
        Where the product of leading axes is made.
    """

    def __init__(
        self,
        index: SnipIndex,
        rule: Rule,
        book: np.ndarray | None,
        number: int,
        is_copy: np.ndarray | None = None,
        device: torch.device = CPU,
    ) -> None:
        rows, codes = index.read_list(number)
        if is_copy is not None and len(rows):
            keep = ~is_copy[rows.astype(np.int64)]
            if not keep.all():
                rows, codes = rows[keep], codes[keep]
        self.rows, self.rule, self.device = rows, rule, device
        self.centroid = index.trained.centroids[number]
        self._own = rule.axes.project(self.centroid[None])[0]
        codec = index.trained.codec
        self._short = rule.axes.decode(codec, book, codes)
        self._whole = codec.decode(codes, self.centroid)

    def hits(self, ids: np.ndarray, x: np.ndarray, error: np.ndarray) -> Iterator[Hits]:
        """Candidates, a block of queries at a time.

        Parameters
        ----------
        ids
            uint64[q], ascending row ids of the queries.
        x
            float32[q, dim], their SNIP features.
        error
            float32[q, 2], their ADC(i, i): squared steps on the leading axes, and as a whole.

        Yields
        ------
        Hits with positions in `ids` and in `self.rows`.
        """
        stop = np.searchsorted(self.rows, ids)
        axes = self.rule.axes
        short = axes.coordinates(axes.project(x), self._own)
        bound = -short[:, -1] - np.float32(0.5) * (error[:, 0] + np.float32(self.rule.short_steps))
        short[:, -1] = 1
        limit = np.float32(self.rule.slack)
        operands = (x, self._whole, np.ascontiguousarray(error[:, 1]), limit)
        if self.device.type != "cpu":
            yield from scanned_on(self.device, self._short, short, bound, stop, operands)
        else:
            yield from scanned(self._short, short, bound, stop, operands)


def scanned(
    listed: np.ndarray, short: np.ndarray, bound: np.ndarray, stop: np.ndarray, operands: tuple
) -> Iterator[Hits]:
    """Candidates, some hundred thousand at a time; those of a query together.

    Parameters
    ----------
    listed
        float32[n, width + 1], rows of the list on the leading axes (see `Axes.coordinates`).
    short
        float32[q, width + 1], queries there; 1 in the last column.
    bound
        float32[q]: least product of both.
    stop
        int64[q]: rows before which each query looks.
    operands
        x, rows, error and slack.
    """
    found, start = _scratch(), 0
    listed, norms = panels(listed)
    short, bound = queries(short, bound)
    while start < len(bound):
        where = (listed, norms, short, bound, stop, *operands, start, GROUP)
        start, count = scan(*where, *found)
        if count < 0:
            found = tuple(np.concatenate([a, np.empty_like(a)]) for a in found)
        elif count:
            yield Hits(*(a[:count].copy() for a in found)).ordered()


@torch.inference_mode()
def scanned_on(
    device: torch.device,
    listed: np.ndarray,
    short: np.ndarray,
    bound: np.ndarray,
    stop: np.ndarray,
    operands: tuple,
) -> Iterator[Hits]:
    """The same candidates, with product and comparison on another device.

    Whole coordinates make the product exact there too; the ADC of what remains is computed here.

    Parameters
    ----------
    listed, short, bound, stop, operands
        As for `scanned`.
    """
    rows = torch.from_numpy(listed).to(device)
    place = torch.arange(len(rows), device=device)
    size = max(1, DEVICE_SCORES // max(1, len(rows)))
    x, whole, error, slack = operands
    for start in range(0, len(bound), size):
        part = slice(start, start + size)
        own, floor, last = (torch.from_numpy(a[part]).to(device) for a in (short, bound, stop))
        near = (own @ rows.T >= floor[:, None]) & (place < last[:, None])
        found = near.nonzero().cpu().numpy().astype(np.int32)
        query, row = found[:, 0] + np.int32(start), np.ascontiguousarray(found[:, 1])
        excess = _excess(x, whole, error, query, row)
        inside = excess <= slack
        if inside.any():
            yield Hits(query[inside], row[inside], excess[inside])


@njit(nogil=True, cache=True, fastmath=_FLAGS)
def _excess(x, rows, error, query, row):
    out = np.empty(query.shape[0], np.float32)
    for k in range(query.shape[0]):
        out[k] = _distance(x, query[k], rows, row[k]) - error[query[k]]
    return out


_local = threading.local()


def _scratch() -> tuple[np.ndarray, ...]:
    """Room for candidates, the same for all lists of a thread."""
    if getattr(_local, "room", None) != ROOM:
        _local.room, _local.scratch = ROOM, buffers(ROOM)
    return _local.scratch


def buffers(room: int) -> tuple[np.ndarray, ...]:
    """Where `scan` puts query, row and excess."""
    return np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32)
