"""Who stays: the greedy keep rule, exact, in one pass over sorted pairs, without orphans.

Rows are visited by priority (`keep_rule`): a row is kept if none of its neighbours is kept
already, else dropped. So no two kept rows are within `max_distance` of each other, and every
dropped row has a kept row within `max_distance`: a maximal independent set of the pairs. Each
dropped row then points to its nearest kept neighbour (ties: lowest row id), which may have been
visited later than the row itself.

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
bit for bit, in four passes over the pair files and one sort, however long the chains.

Memory: for N rows of which R distinct ones occur in pairs, at most the larger of 13 N (counting
neighbours) and 4 N + 13 R bytes (deciding), twice that from 2^32 rows; and about 1 GB of fixed
buffers. Disk while it runs: 8 bytes a pair and 16 bytes a row that occurs in pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import keep_kernels as kernels
from . import keep_rule
from .errors import BadInputError
from .external_sort import Sorter
from .files import NpyWriter, open_npy
from .groups import flatten, unite
from .metadata import Metadata
from .pair_files import limit, row_dtype, stream

BLOCK_ROWS = 1 << 20
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)

# (row, earlier_row) of pairs at distance 0 -> bool: are they copies byte for byte?
Copies = Callable[[np.ndarray, np.ndarray], np.ndarray]


def copies_by_hash(paths: Sequence[Path], offsets: np.ndarray) -> Copies:
    """Exact copies are the pairs at distance 0 whose raw rows have the same hash.

    Parameters
    ----------
    paths
        uint64[n] a shard: a hash of each raw row; memory-mapped.
    offsets
        int64[S + 1]: row ids at which the shards start.
    """
    maps = [open_npy(path) for path in paths]

    def hashes(rows: np.ndarray) -> np.ndarray:
        shards = np.searchsorted(offsets, rows, "right") - 1
        out = np.empty(len(rows), np.uint64)
        for shard in np.unique(shards):
            inside = shards == shard
            out[inside] = maps[shard][rows[inside] - offsets[shard]]
        return out

    return lambda row, earlier_row: hashes(row) == hashes(earlier_row)


@dataclass
class Decision:
    """What was decided, by rank: the place of a class of exact copies in the order of visits.

    Attributes
    ----------
    rank
        uint32 or uint64[rows]: rank of the class of each row; the largest value if the row has
        no pair.
    survivor
        [ranks]: the best member of each class, which stays if the class does.
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

    Returns
    -------
    dict
        rows, kept, dropped.

    Raises
    ------
    BadInputError
        The rule does not fit the metadata, or a pair file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out) as spill:
        decision = decide(
            pair_files,
            rows,
            rule,
            Path(spill),
            max_distance=max_distance,
            metadata=metadata,
            copies=copies,
        )
        nearest, distance = _nearest(pair_files, decision, limit(max_distance))
        dropped = _write(decision, nearest, distance, out, Path(spill), before)
    return {"rows": rows, "kept": rows - dropped, "dropped": dropped}


def decide(
    pair_files: Sequence[Path],
    rows: int,
    rule: str,
    spill: Path,
    *,
    max_distance: float | None = None,
    metadata: Metadata | None = None,
    copies: Copies | None = None,
) -> Decision:
    """Who stays, without the nearest kept row: as `keep`, with `spill` an existing folder."""
    parsed = keep_rule.parse(rule)
    if parsed.columns and (metadata is None or metadata.rows != rows):
        have = "no metadata" if metadata is None else f"metadata of {metadata.rows} rows"
        raise BadInputError(f"keep rule {rule!r} needs the metadata of {rows} rows; given {have}.")
    most = limit(max_distance)
    first, paired = _classes(pair_files, rows, most, copies)
    order = _visits(pair_files, parsed, first, paired, most, spill, metadata)
    rank, survivor = _ranks(order, first, paired)
    del first, paired
    dropped = np.zeros(len(survivor), np.bool_)
    for later, earlier in _by_later_visit(pair_files, rank, most, spill):
        kernels.sweep(later, earlier, dropped)
    return Decision(rank, survivor, dropped)


def _classes(
    pair_files: Sequence[Path], rows: int, most: np.float32, copies: Copies | None
) -> tuple[np.ndarray, np.ndarray]:
    """First copy of each row, and whether it has a pair."""
    first = np.arange(rows, dtype=row_dtype(rows))
    paired = np.zeros(rows, np.bool_)
    for pairs in stream(pair_files, rows, "Exact copies"):
        kernels.mark(pairs.row, pairs.earlier_row, pairs.distance, most, paired)
        same = np.flatnonzero(pairs.distance == 0)
        if copies is not None and len(same):
            same = same[copies(pairs.row[same], pairs.earlier_row[same])]
        unite(first, pairs.row[same], pairs.earlier_row[same], pairs.distance[same], most)
    flatten(first)
    return first, paired


def _visits(
    pair_files: Sequence[Path],
    rule: keep_rule.Rule,
    first: np.ndarray,
    paired: np.ndarray,
    most: np.float32,
    spill: Path,
    metadata: Metadata | None,
) -> Iterator[np.ndarray]:
    """Rows that have pairs, in the order of visits, block by block."""
    if rule.kind == "first":
        for start in range(0, len(first), BLOCK_ROWS):
            yield np.flatnonzero(paired[start : start + BLOCK_ROWS]) + start
        return
    sorter = Sorter(spill, first.dtype)
    if rule.kind == "neighbours":
        blocks = _neighbour_keys(pair_files, first, most)
    else:
        assert metadata is not None
        blocks = _value_keys(rule, metadata)
    start = 0
    for keys in blocks:
        inside = np.flatnonzero(paired[start : start + len(keys)])
        sorter.append(keys[inside], (inside + start).astype(first.dtype))
        start += len(keys)
    for _, rows in sorter.blocks():
        yield rows.astype(np.int64)


def _neighbour_keys(
    pair_files: Sequence[Path], first: np.ndarray, most: np.float32
) -> Iterator[np.ndarray]:
    sizes = np.zeros_like(first)
    kernels.count_members(first, sizes)
    neighbours = sizes - sizes.dtype.type(1)
    for pairs in stream(pair_files, len(first), "Neighbours"):
        kernels.count(pairs.row, pairs.earlier_row, pairs.distance, most, first, sizes, neighbours)
    del sizes
    top = np.uint64(np.iinfo(np.uint64).max)
    for start in range(0, len(first), BLOCK_ROWS):
        yield top - neighbours[first[start : start + BLOCK_ROWS]].astype(np.uint64)


def _value_keys(rule: keep_rule.Rule, metadata: Metadata) -> Iterator[np.ndarray]:
    counts = np.diff(metadata.offsets)
    for path, count in zip(metadata.paths, counts, strict=True):
        for block in keep_rule.values(rule, path, int(count)):
            yield ascending_keys(-block if rule.kind == "largest" else block)


def ascending_keys(values: np.ndarray) -> np.ndarray:
    """uint64 keys that sort as the float64 values do; NaN last, -0 as 0."""
    bits = (values + 0.0).view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    keys = np.where(negative, ~bits, bits | np.uint64(1 << 63))
    keys[np.isnan(values)] = np.iinfo(np.uint64).max
    return keys


def _ranks(
    order: Iterator[np.ndarray], first: np.ndarray, paired: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's class, and the best member of each class."""
    rank = np.full(len(first), _none(first), first.dtype)
    survivor = np.empty(kernels.count_classes(first, paired), first.dtype)
    done = 0
    for rows in order:
        done = kernels.number(rows, first, rank, survivor, done, _none(rank))
    kernels.share(first, paired, rank)
    return rank, survivor


def _by_later_visit(
    pair_files: Sequence[Path], rank: np.ndarray, most: np.float32, spill: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ranks of the later and the earlier visited end of each pair, sorted by the later."""
    narrow = rank.dtype == np.uint32
    sorter = Sorter(spill, None if narrow else np.uint64)
    for pairs in stream(pair_files, len(rank), "Order of pairs"):
        later, earlier = kernels.ends(pairs.row, pairs.earlier_row, pairs.distance, most, rank)
        if narrow:
            sorter.append(later << SHIFT | earlier)
        else:
            sorter.append(later, earlier)
    for block in sorter.blocks():
        yield (block[0] >> SHIFT, block[0] & LOW) if narrow else (block[0], block[1])


def _nearest(
    pair_files: Sequence[Path], decision: Decision, most: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest kept row of each dropped class, and its distance, by rank."""
    nearest = np.zeros_like(decision.survivor)
    best = np.full(len(nearest), np.inf, np.float32)
    for pairs in stream(pair_files, len(decision.rank), "Nearest kept rows"):
        kernels.improve(
            *pairs, most, decision.rank, decision.dropped, decision.survivor, nearest, best
        )
    return nearest, best


def _write(
    decision: Decision,
    nearest: np.ndarray,
    distance: np.ndarray,
    out: Path,
    spill: Path,
    before: Path | None,
) -> int:
    rows, kind = len(decision.rank), decision.rank.dtype
    narrow = kind == np.uint32
    sorter = Sorter(spill, None if narrow else np.uint64)
    names = ("kept_row", "kept_distance")
    former = None if before is None else [open_npy(before / f"{name}.npy") for name in names]
    dropped = 0
    with (
        NpyWriter(out / "kept_row.npy", (rows,), kind) as kept_rows,
        NpyWriter(out / "kept_distance.npy", (rows,), np.float32) as distances,
    ):
        for start in range(0, rows, BLOCK_ROWS):
            rank = decision.rank[start : start + BLOCK_ROWS]
            kept, far = kernels.explain(
                start, rank, decision.dropped, decision.survivor, nearest, distance, _none(rank)
            )
            if former is not None:
                _as_before(rank == _none(rank), (kept, far), [a[start:] for a in former])
            kept_rows.append(kept)
            distances.append(far)
            inside = np.flatnonzero(kept != np.arange(start, start + len(rank), dtype=kind))
            pair = kept[inside].astype(np.uint64), (inside + start).astype(np.uint64)
            sorter.append(*((pair[0] << SHIFT | pair[1],) if narrow else pair))
            dropped += len(inside)
    with (
        NpyWriter(out / "dropped_kept_rows.npy", (dropped,), kind) as kept_rows,
        NpyWriter(out / "dropped_rows.npy", (dropped,), kind) as rows_of_kept,
    ):
        for block in sorter.blocks():
            columns = (block[0] >> SHIFT, block[0] & LOW) if narrow else block
            kept_rows.append(columns[0])
            rows_of_kept.append(columns[1])
    return dropped


def _as_before(
    unpaired: np.ndarray, block: tuple[np.ndarray, ...], former: list[np.ndarray]
) -> None:
    """Take over what was decided about rows that are in no pair now, if they were there before."""
    known = min(len(unpaired), len(former[0]))
    for own, earlier in zip(block, former, strict=True):
        np.copyto(own[:known], earlier[:known], where=unpaired[:known])
