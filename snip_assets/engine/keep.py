"""Who stays: the greedy keep rule, exact, in one pass over sorted pairs, without orphans.

Rows are visited by priority (`keep_rule`): a row is kept if none of its neighbours is kept
already, else dropped. So no two kept rows are within `max_distance` of each other (`given_up` sees
to it where not all pairs are stored), and every dropped row has a kept row within `max_distance`: a
maximal independent set of the pairs. Each dropped row then points to its nearest kept neighbour
(ties: lowest row id), which may have been visited later than the row itself.

**Exact copies.** Pairs hold one pair for each later copy, with its first copy at distance 0; the
other neighbours are known of the first copy alone. So a class of exact copies is *one node*: all
its members are neighbours of each other and of all neighbours of the class. Its place in the
order of visits is that of its best member. If the class is kept, that member survives and the
others point to it at distance 0. If the class is dropped, all members are dropped and point to
the same kept row at the same distance. A row counts as many neighbours as there are other rows in
its class and rows in the classes of its pairs.

**Method.** Visiting by rounds takes as many rounds as the longest chain of falling priority.
Instead, pairs are sorted on disk by the rank of the end that is visited later (time-forward
processing: Chiang et al., External-memory graph algorithms, SODA 1995). Streamed in that order,
the earlier-visited end of each pair is always decided. The result is the sequential greedy's,
bit for bit, in six passes over the pairs and one sort, however long the chains.

Rows without a pair stay. So the others are numbered anew first (`pair_files.number_rows`), and all
that follows is by those places: what is decided costs what there is to decide.

Memory: for N rows of which R occur in pairs, at most the larger of 5 N + 4 R (numbering) and
21 R bytes (deciding, writing), twice that from 2^32 rows; and about 1 GB of fixed buffers.
Disk while it runs: 21 bytes a pair and 16 bytes a row that occurs in pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from . import keep_rule, threads
from .errors import BadInputError
from .given_up import GivenUp
from .groups import flatten, unite
from .kernels import keep_loops
from .metadata import Metadata
from .pair_files import Copies, PairBlock, Paired, limit, mark, number_rows, row_dtype
from .storage.external_sort import PairSorter, Sorter
from .storage.files import NpyWriter, open_npy

BLOCK_ROWS = 1 << 20


@dataclass
class Decision:
    """What was decided, by rank: the place of a class of exact copies in the order of visits.

    Attributes
    ----------
    rank
        uint32 or uint64[R]: rank of the class of each row, by place; the largest value if the row
        has no pair.
    survivor
        [ranks]: place of the best member of each class, which stays if the class does.
    dropped
        bool[ranks].
    """

    rank: np.ndarray
    survivor: np.ndarray
    dropped: np.ndarray

    @property
    def kept_classes(self) -> int:
        """Classes that stay, of those that have pairs."""
        return len(self.dropped) - int(np.count_nonzero(self.dropped))

    @property
    def dropped_rows(self) -> int:
        """Rows that go."""
        none = _none(self.rank)
        blocks = range(0, len(self.rank), BLOCK_ROWS)
        paired = sum(np.count_nonzero(self.rank[b : b + BLOCK_ROWS] != none) for b in blocks)
        return int(paired) - self.kept_classes


def _none(rank: np.ndarray) -> np.unsignedinteger:
    return rank.dtype.type(np.iinfo(rank.dtype).max)


def keep(
    pair_files: Sequence[Path],
    rows: int,
    rule: str,
    out: Path,
    *,
    max_distance: float | None = None,
    metadata: Metadata | None = None,
    copies: Copies | None = None,
    before: Path | None = None,
    given_up: GivenUp | None = None,
) -> dict[str, Any]:
    """Decide about every row and write it down.

    Writes into the existing folder `out`: `kept_row.npy` (uint32, uint64 from 2^32 rows: the kept
    row that explains each row, itself when kept), `kept_distance.npy` (float32, 0 when kept), and
    the dropped rows sorted by (kept row, row): `dropped_rows.npy` with `dropped_kept_rows.npy`.

    Parameters
    ----------
    pair_files, rows, max_distance
        As in `groups.extend`.
    rule
        As in `keep_rule`.
    metadata
        Needed for a rule with an expression.
    copies
        Tells which pairs at distance 0 are exact copies; default: all.
    before
        Folder of an earlier decision, which holds for all rows that occur in no pair here: then
        the pairs of the groups that changed are enough.
    given_up
        Measures pairs that are not stored; then `out` holds `labels.npy`.

    Returns
    -------
    dict
        rows, kept, dropped.

    Raises
    ------
    BadInputError
        The rule does not fit the metadata, or a pair file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out) as name:
        spill = Path(name)
        paired = number_rows(pair_files, rows, spill / "pairs", max_distance, copies)
        decision = decide(paired, rule, spill, metadata=metadata)
        found: list[PairBlock] = []
        if given_up is not None:
            found = given_up.settle(paired, decision, open_npy(out / "labels.npy"))
        nearest, distance = _nearest(paired, decision, found)
        dropped = _write(paired, decision, nearest, distance, out, spill, before)
    return {"rows": rows, "kept": rows - dropped, "dropped": dropped}


def decide(
    paired: Paired,
    rule: str,
    spill: Path,
    *,
    max_distance: float | None = None,
    metadata: Metadata | None = None,
) -> Decision:
    """Who stays, without the nearest kept row: as `keep`, with `spill` an existing folder."""
    parsed = keep_rule.parse(rule)
    if parsed.columns and (metadata is None or metadata.rows != paired.rows):
        have = "no metadata" if metadata is None else f"metadata of {metadata.rows} rows"
        raise BadInputError(
            f"keep rule {rule!r} needs the metadata of {paired.rows} rows; given {have}."
        )
    most = limit(max_distance)
    first, marked = _classes(paired, most)
    order = _visits(paired, parsed, first, marked, most, spill, metadata)
    rank, survivor = _ranks(order, first, marked)
    del first, marked
    dropped = np.zeros(len(survivor), np.bool_)
    for later, earlier in _by_later_visit(paired, rank, most, spill):
        keep_loops.sweep(later, earlier, dropped)
    return Decision(rank, survivor, dropped)


def _classes(paired: Paired, most: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """First copy of each row, and whether it has a pair."""
    rows = len(paired.ids)
    first = np.arange(rows, dtype=row_dtype(rows))
    marked = np.zeros(rows, np.bool_)
    for pairs, copy in paired.blocks("Exact copies"):
        mark(*pairs, most, marked)
        row, earlier, distance = (a[copy] for a in pairs)
        unite(first, row, earlier, distance, most)
    flatten(first)
    return first, marked


def _visits(
    paired: Paired,
    rule: keep_rule.Rule,
    first: np.ndarray,
    marked: np.ndarray,
    most: np.float32,
    spill: Path,
    metadata: Metadata | None,
) -> Iterator[np.ndarray]:
    """Rows that have pairs, in the order of visits, block by block."""
    if rule.kind == "first":
        for start in range(0, len(first), BLOCK_ROWS):
            yield np.flatnonzero(marked[start : start + BLOCK_ROWS]) + start
        return
    sorter = Sorter(spill, first.dtype)
    if rule.kind == "neighbours":
        blocks = _neighbour_keys(paired, first, most)
    else:
        assert metadata is not None
        blocks = _value_keys(paired, rule, metadata)
    start = 0
    for keys in blocks:
        inside = np.flatnonzero(marked[start : start + len(keys)])
        sorter.append(keys[inside], (inside + start).astype(first.dtype))
        start += len(keys)
    for _, rows in sorter.blocks():
        yield rows.astype(np.int64)


def _neighbour_keys(paired: Paired, first: np.ndarray, most: np.float32) -> Iterator[np.ndarray]:
    sizes = np.zeros_like(first)
    keep_loops.count_members(first, sizes)
    neighbours = sizes - sizes.dtype.type(1)
    for pairs, _ in paired.blocks("Neighbours"):
        keep_loops.count(*pairs, most, first, sizes, neighbours)
    del sizes
    top = np.uint64(np.iinfo(np.uint64).max)
    for start in range(0, len(first), BLOCK_ROWS):
        yield top - neighbours[first[start : start + BLOCK_ROWS]].astype(np.uint64)


def _value_keys(paired: Paired, rule: keep_rule.Rule, metadata: Metadata) -> Iterator[np.ndarray]:
    counts, start = np.diff(metadata.offsets), 0
    for path, count in zip(metadata.paths, counts, strict=True):
        for block in keep_rule.values(rule, path, int(count)):
            low, high = np.searchsorted(paired.ids, _bounds(paired.ids, start, len(block)))
            values = block[paired.ids[low:high].astype(np.int64) - start]
            yield ascending_keys(-values if rule.kind == "largest" else values)
            start += len(block)


def _bounds(ids: np.ndarray, start: int, count: int) -> np.ndarray:
    """Ends of a block of row ids, as wide as `ids`: else NumPy would make all of these wider."""
    return np.array([start, start + count], np.uint64).astype(ids.dtype)


def ascending_keys(values: np.ndarray) -> np.ndarray:
    """uint64 keys that sort as the float64 values do; NaN last, -0 as 0."""
    bits = (values + 0.0).view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    keys = np.where(negative, ~bits, bits | np.uint64(1 << 63))
    keys[np.isnan(values)] = np.iinfo(np.uint64).max
    return keys


def _ranks(
    order: Iterator[np.ndarray], first: np.ndarray, marked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's class, and the best member of each class."""
    rank = np.full(len(first), _none(first), first.dtype)
    survivor = np.empty(keep_loops.count_classes(first, marked), first.dtype)
    done = 0
    for rows in order:
        done = keep_loops.number(rows, first, rank, survivor, done, _none(rank))
    keep_loops.share(first, marked, rank)
    return rank, survivor


def _by_later_visit(
    paired: Paired, rank: np.ndarray, most: np.float32, spill: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ranks of the later and the earlier visited end of each pair, sorted by the later."""
    sorter = PairSorter(spill, rank.dtype)
    for pairs, _ in paired.blocks("Order of pairs"):
        sorter.append(*keep_loops.ends(*pairs, most, rank))
    yield from sorter.blocks()


def _nearest(
    paired: Paired, decision: Decision, found: list[PairBlock]
) -> tuple[np.ndarray, np.ndarray]:
    """Place of the nearest kept row of each dropped class, and its distance, by rank."""
    nearest = np.zeros_like(decision.survivor)
    best = np.full(len(nearest), np.inf, np.float32)
    by_rank = (decision.rank, decision.dropped, decision.survivor, nearest, best)
    stored = (pairs for pairs, _ in paired.blocks("Nearest kept rows"))
    for pairs in chain(stored, found):
        keep_loops.improve(*pairs, *by_rank)
    return nearest, best


def _row_ids(ids: np.ndarray, *places: np.ndarray) -> list[np.ndarray]:
    """Row ids of places: in their own room, where these are as wide."""
    found = [own if own.dtype == ids.dtype else np.empty(len(own), ids.dtype) for own in places]
    for own, out in zip(places, found, strict=True):
        for start in range(0, len(own), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            out[part] = ids[own[part]]
    return found


def _write(
    paired: Paired,
    decision: Decision,
    nearest: np.ndarray,
    distance: np.ndarray,
    out: Path,
    spill: Path,
    before: Path | None,
) -> int:
    ids, kind = paired.ids, paired.ids.dtype
    by_rank = decision.dropped, *_row_ids(ids, decision.survivor, nearest), distance
    sorter = PairSorter(spill, kind)
    names = ("kept_row", "kept_distance")
    former = [] if before is None else [open_npy(before / f"{name}.npy") for name in names]

    def explained(start: int) -> tuple[np.ndarray, ...]:
        """Kept rows and distances of a block; the rows of it that go."""
        rows = np.arange(start, min(paired.rows, start + BLOCK_ROWS), dtype=kind)
        block = rows.copy(), np.zeros(len(rows), np.float32)
        for own, earlier in zip(block, former, strict=False):
            known = earlier[start : start + len(rows)]
            own[: len(known)] = known
        low, high = np.searchsorted(ids, _bounds(ids, start, len(rows)))
        part = [np.empty(high - low, own.dtype) for own in block]
        keep_loops.explain(decision.rank[low:high], *by_rank, *part)
        for own, new in zip(block, part, strict=True):
            own[ids[low:high] - start] = new
        return *block, rows[block[0] != rows]

    dropped = 0
    with (
        NpyWriter(out / "kept_row.npy", (paired.rows,), kind) as kept_rows,
        NpyWriter(out / "kept_distance.npy", (paired.rows,), np.float32) as distances,
    ):
        for kept, far, gone in threads.ordered_map(explained, range(0, paired.rows, BLOCK_ROWS), 2):
            start = kept_rows.rows
            kept_rows.append(kept)
            distances.append(far)
            sorter.append(kept[gone - kind.type(start)], gone)
            dropped += len(gone)
    with (
        NpyWriter(out / "dropped_kept_rows.npy", (dropped,), kind) as kept_rows,
        NpyWriter(out / "dropped_rows.npy", (dropped,), kind) as rows_of_kept,
    ):
        for kept, row in sorter.blocks():
            kept_rows.append(kept)
            rows_of_kept.append(row)
    return dropped
