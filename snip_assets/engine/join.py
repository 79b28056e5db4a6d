"""The join: candidate pairs, list by list, as matrix products.

A pair (query row i, earlier row j) is a candidate when

    ADC(i, j) - ADC(i, i) <= slack,

where ADC(i, j) is the squared distance of the exact SNIP feature of i to the decoded code of j and
ADC(i, i) the quantisation error of i itself: a threshold that adapts to each query.

The same must hold in a few leading axes of the residuals, with a slack of their own (a rotation
puts half of the energy into a quarter of the axes): true pairs differ as little there as anywhere,
most other rows already differ too much. So a list is read once, its codes are decoded onto those
axes, one small matrix product throws out nearly everything, and one scan of it computes the ADC of
the few rows that remain. Both are sums of whole numbers, hence exact (see `axes`, `whole_rows`):
candidates do not depend on block sizes, threads, processors, or which shards are joined together.

Only earlier rows are compared, and there is no limit on hits a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from .index import SnipIndex
from .kernels.byte_products import Short, compare, queries
from .kernels.registers import LANES, lowest_bit, squared_steps
from .kernels.whole_rows import Decoded, decode
from .list_queries import UNIT, CandidateRule, ListQueries, slack_steps

# Queries that meet a panel of rows while it lies in the nearest cache: a multiple of `AT_ONCE`.
QUERY_BLOCK = 256
ROOM = 1 << 18
# Products held on another device at once: 64 MB, and a quarter of it for comparing them. Where a
# list has fewer than the least, they are made here: the way there takes longer.
DEVICE_SCORES, DEVICE_LEAST = 1 << 24, 1 << 21
CPU = torch.device("cpu")


@njit(nogil=True, cache=True)
def _passed(listed, starts, panel, short, start, end, bound, stop, near, query, row, count):
    """Pairs of a block of queries and a panel whose short product is near enough; their number."""
    masks, numbers = near
    base = panel * LANES
    for k in range(compare(listed, starts, panel, short, start, end, bound, masks, numbers)):
        mask, i = masks[k], numbers[k]
        while mask != 0:
            j = base + lowest_bit(mask)
            mask &= mask - np.uint32(1)
            if j >= stop[i]:
                break
            query[count], row[count] = i, j
            count += 1
    return count


@njit(nogil=True, cache=True)
def _decided(x, whole, error, slack, query, row, excess, low, high):
    """Keep those of the pairs from low to high whose excess is within the slack; their end."""
    decode(whole, row, low, high)
    rows = whole.rows
    # In a loop of its own: a row waits for no other then.
    for k in range(low, high):
        excess[k] = squared_steps(x, query[k], rows, row[k])
    for k in range(low, high):
        i, apart = query[k], np.int64(excess[k])
        over = apart - error[i]
        query[low], row[low], excess[low] = i, row[k], over
        # Below 0 only what is too far for 32 bits.
        low += (over <= slack) & (apart >= 0)
    return low


@njit(nogil=True, cache=True)
def scan(
    listed, starts, short, bound, stop, x, whole, error, slack, start, block, query, row, excess
):
    """Find candidates, block by block of queries, until half of the room is taken.

    A candidate is a (query, row) with row < stop of the query, a short product less the row's norm
    >= its bound, and an excess <= slack.

    Returns
    -------
    The query to go on with, and the number of candidates: -1 when one block needs more room.
    """
    count, near = 0, (np.empty(block, np.uint32), np.empty(block, np.int32))
    while start < bound.shape[0] and 2 * count <= query.shape[0]:
        end = min(start + block, bound.shape[0])
        complete, last = count, 0
        for i in range(start, min(end, stop.shape[0])):
            last = max(last, stop[i])
        for panel in range((last + LANES - 1) // LANES):
            if count + block * LANES > query.shape[0]:
                return start, complete if complete > 0 else -1
            operands = listed, starts, panel, short, start, end, bound, stop, near
            high = _passed(*operands, query, row, count)
            if high > count:
                count = _decided(x, whole, error, slack, query, row, excess, count, high)
        start = end
    return start, count


@dataclass
class Hits:
    """Candidates in one list, by (query, row): positions, and ADC(i, j) - ADC(i, i)."""

    query: np.ndarray
    row: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, query: np.ndarray, row: np.ndarray, steps: np.ndarray) -> Hits:
        """With the excess in squared steps."""
        return cls(query, row, steps.astype(np.float32) * np.float32(1 / UNIT))

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
        See `CandidateRule`.
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
        rule: CandidateRule,
        book: np.ndarray | None,
        number: int,
        is_copy: np.ndarray | None = None,
        device: torch.device = CPU,
    ) -> None:
        rows, codes = index.read_list(number, is_copy)
        self.rows, self.rule, self.device = rows, rule, device
        self._decoded = index.trained.codec, book, codes
        self._whole = Decoded.of(index.trained.codec, codes, index.trained.centroids[number])

    def hits(self, stop: np.ndarray, asked: ListQueries) -> Iterator[Hits]:
        """Candidates, a block of queries at a time.

        Parameters
        ----------
        stop
            int64[q]: position in `self.rows` before which each query looks.
        asked
            The queries.

        Yields
        ------
        Hits with positions among the queries and in `self.rows`.
        """
        short, bound, whole, error = asked
        operands = whole, self._whole, error, slack_steps(self.rule.slack)
        axes = self.rule.axes
        if self._elsewhere(len(stop)):
            own = axes.decode(*self._decoded)
            yield from scanned_on(self.device, own, short, bound, stop, operands)
        else:
            rows = axes.decoded_panels(*self._decoded)
            yield from scanned(rows, queries(short, bound), stop, operands)

    def _elsewhere(self, count: int) -> bool:
        """Whether products of so many queries are made on another device."""
        return self.device.type != "cpu" and count * len(self.rows) >= DEVICE_LEAST


def scanned(
    rows: tuple[np.ndarray, np.ndarray],
    asked: tuple[np.ndarray, np.ndarray],
    stop: np.ndarray,
    operands: tuple,
) -> Iterator[Hits]:
    """Candidates, some hundred thousand at a time; those of a query together.

    Parameters
    ----------
    rows, asked
        What `panels` and `queries` make of rows of the list and of queries.
    stop
        int64[q]: rows before which each query looks.
    operands
        Whole rows of the queries (see `whole_rows`), those of the list as `Decoded`; error
        (int64[q]) and slack in squared steps.
    """
    found, start = _scratch(), 0
    while start < len(asked[1]):
        where = (*rows, *asked, stop, *operands, start, QUERY_BLOCK)
        start, count = scan(*where, *found)
        if count < 0:
            found = tuple(np.concatenate([a, np.empty_like(a)]) for a in found)
        elif count:
            yield Hits.of(*(a[:count].copy() for a in found)).ordered()


_one_at_a_time = threading.Lock()


@torch.inference_mode()
def scanned_on(
    device: torch.device,
    listed: Short,
    short: Short,
    bound: np.ndarray,
    stop: np.ndarray,
    operands: tuple,
) -> Iterator[Hits]:
    """The same candidates, with product and comparison on another device.

    Whole coordinates make the product exact there too; the ADC of what remains is computed here.
    One thread at a time has products there, so their memory does not grow with the workers.

    Parameters
    ----------
    listed, short
        Rows of the list and queries on the leading axes.
    bound
        float32[q]: least product of both.
    stop, operands
        As for `scanned`.
    """
    x, whole, error, slack = operands
    rows, asked = _columns(listed, listed.half, device), _columns(short, 1.0, device)
    floor, last = (torch.from_numpy(a).to(device) for a in (bound, stop))
    size = max(1, DEVICE_SCORES // max(1, len(rows)))
    for start in range(0, len(bound), size):
        part = slice(start, start + size)
        low, high = int(stop[part].min()), int(stop[part].max())
        with _one_at_a_time:
            near = asked[part] @ rows[:high].T >= floor[part, None]
            # Rows before `low` are before the row of every query.
            place = torch.arange(low, high, device=device)
            near[:, low:].logical_and_(place < last[part, None])
            query, row = near.nonzero().int().T.contiguous().cpu().numpy()
            del near
        query += np.int32(start)
        excess = np.empty(len(row), np.int32)
        if count := _decided(x, whole, error, slack, query, row, excess, 0, len(row)):
            yield Hits.of(query[:count], row[:count], excess[:count])


def _columns(rows: Short, last: np.ndarray | float, device: torch.device) -> torch.Tensor:
    """Rows on the leading axes as float32, and one column more."""
    wide = torch.empty((len(rows.steps), rows.width + 1), device=device)
    wide[:, :-1] = torch.from_numpy(rows.steps[:, : rows.width]).to(device)
    wide[:, -1] = torch.from_numpy(last).to(device) if isinstance(last, np.ndarray) else last
    return wide


_local = threading.local()


def _scratch() -> tuple[np.ndarray, ...]:
    """Room for candidates, the same for all lists of a thread."""
    if getattr(_local, "room", None) != ROOM:
        _local.room, _local.scratch = ROOM, buffers(ROOM)
    return _local.scratch


def buffers(room: int) -> tuple[np.ndarray, ...]:
    """Where `scan` puts query, row and excess."""
    return np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
