"""All pairs of some shards: the join of their rows with all earlier rows, verified and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .features import as_float32
from .files import atomic_path, open_npy
from .index import SnipIndex
from .join import CPU, ListJoin, Rule
from .progress import task
from .resident import trim
from .threads import ordered_map
from .verify import Pairs, Rows, Verifier, thin

ROW_GROUP = 1 << 20
VERIFY_BLOCK = 1 << 16
SCHEMA = pa.schema([("row", pa.uint64()), ("earlier_row", pa.uint64()), ("distance", pa.float32())])


@dataclass
class QueryShard:
    """What the join reads of a shard whose rows are queries.

    Attributes
    ----------
    start
        Row id of its first row.
    folder
        Its index shard: who probes which list, and the quantisation errors.
    """

    start: int
    folder: Path

    @cached_property
    def probe_offsets(self) -> np.ndarray:
        """int64[lists + 1]."""
        return np.asarray(open_npy(self.folder / "probe_offsets.npy"))

    @cached_property
    def probe_rows(self) -> np.ndarray:
        """uint32[m], rows in shard by list."""
        return np.asarray(open_npy(self.folder / "probe_rows.npy"))

    @cached_property
    def errors(self) -> np.ndarray:
        """float32[m, 2], of those rows: as often as they probe, so that a list's are together."""
        return np.asarray(open_npy(self.folder / "errors.npy"))


@dataclass
class Counts:
    """What a join did."""

    products: int = 0
    candidates: int = 0
    lists: int = 0
    per_shard: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Join:
    """Everything that a list's work needs.

    Attributes
    ----------
    index, rule, verifier
        See their classes.
    queries
        Where the vectors of queries come from, by row id: SNIP features or decoded codes.
    exact_queries
        Whether they are exact, so that their quantisation error widens the threshold.
    is_copy
        bool[N]: later exact copies, left out of queries and lists.
    max_partners
        See `verify.thin`.
    device
        Where products are made.
    """

    index: SnipIndex
    rule: Rule
    verifier: Verifier
    queries: Rows
    exact_queries: bool
    is_copy: np.ndarray | None
    max_partners: int
    device: torch.device = CPU

    @cached_property
    def book(self) -> np.ndarray | None:
        """The codec's words on the leading axes."""
        return self.rule.axes.book(self.index.trained.codec)


def _queries(shard: QueryShard, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Row ids that probe a list, and their quantisation errors."""
    offsets = shard.probe_offsets
    here = slice(offsets[number], offsets[number + 1])
    return shard.probe_rows[here].astype(np.uint64) + np.uint64(shard.start), shard.errors[here]


def join_list(join: Join, shards: list[QueryShard], number: int) -> tuple[list[Pairs], Counts]:
    """Pairs of one list: one `Pairs` a query shard, sorted and thinned."""
    counts = Counts(lists=1)
    nothing = [Pairs.empty() for _ in shards]
    parts = [_queries(shard, number) for shard in shards]
    ids, error = (np.concatenate(p) for p in zip(*parts, strict=True))
    if join.is_copy is not None and len(ids):
        first = ~join.is_copy[ids.astype(np.int64)]
        ids, error = ids[first], error[first]
    if not len(ids):
        return nothing, counts
    listed = ListJoin(join.index, join.rule, join.book, number, join.is_copy, join.device)
    if not len(listed.rows):
        return nothing, counts
    counts.products = int(np.searchsorted(listed.rows, ids).sum())
    x = as_float32(join.queries.take(ids))
    verifier = join.verifier.holding(ids, x) if join.exact_queries else join.verifier
    if not join.exact_queries:
        error = np.zeros_like(error)
    found = []
    for candidates in _gathered(listed, ids, x, error):
        counts.candidates += len(candidates)
        found.append(verifier(candidates))
    pairs = Pairs.concatenate(found)
    # Cut by shard before thinning, so that what is kept does not depend on the grouping.
    starts = np.array([shard.start for shard in shards], np.uint64)
    cuts = [*np.searchsorted(pairs.row, starts).tolist(), len(pairs)]
    return [thin(pairs[slice(a, b)], join.max_partners) for a, b in pairwise(cuts)], counts


def _gathered(listed: ListJoin, ids, x, error) -> Iterator[Pairs]:
    """Candidates in blocks worth verifying, sorted by (row, earlier_row)."""
    waiting: list[Pairs] = []
    size = 0
    for hits in listed.hits(ids, x, error):
        waiting.append(Pairs(ids[hits.query], listed.rows[hits.row], hits.excess))
        size += len(hits.query)
        if size >= VERIFY_BLOCK:
            yield Pairs.concatenate(waiting)
            waiting, size = [], 0
    if size:
        yield Pairs.concatenate(waiting)


def find_pairs(
    join: Join, shards: list[QueryShard], workers: int = 0
) -> tuple[list[Pairs], Counts]:
    """Near pairs of the rows of these shards with all earlier rows, each list read once.

    Returns
    -------
    One `Pairs` a shard, sorted, and the counts.
    """
    lists = join.index.trained.lists
    # Made once, here, and not by each thread.
    _ = join.book
    parts: list[list[Pairs]] = [[] for _ in shards]
    total = Counts()
    order = np.argsort(-join.index.list_sizes, kind="stable")
    with task("join", lists, "lists") as progress:
        for found, counts in ordered_map(
            lambda number: join_list(join, shards, int(number)), order, workers
        ):
            for own, pairs in zip(parts, found, strict=True):
                if len(pairs):
                    own.append(pairs)
            total.products += counts.products
            total.candidates += counts.candidates
            trim()
            progress.advance()

    def merge(own: list[Pairs]) -> Pairs:
        return thin(Pairs.concatenate(own).ordered(), join.max_partners)

    merged = list(ordered_map(merge, parts, workers))
    total.per_shard = [len(p) for p in merged]
    total.lists = lists
    return merged, total


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write one shard's pairs, in row groups of about a million."""
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for start in range(0, max(len(pairs), 1), ROW_GROUP):
            part = pairs[slice(start, start + ROW_GROUP)]
            writer.write_table(pa.table([part.row, part.earlier_row, part.distance], schema=SCHEMA))


def read_pairs(path: Path) -> Pairs:
    """All pairs of a shard."""
    table = pq.read_table(path, schema=SCHEMA)
    return Pairs(*(table[name].to_numpy() for name in SCHEMA.names))
