"""All pairs of some shards: the join of their rows with all earlier rows, verified and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .choices import batches, query_rows
from .features import as_float32
from .index import SnipIndex
from .join import CPU, ListJoin
from .list_queries import CandidateRule, ListProbes, ListQueries, list_queries
from .listed_pairs import MERGE_AT, Counts, Joined, Listed, Merged
from .pair_files import SCHEMA
from .progress import task
from .query_rows import QueryReader, QueryShard
from .settings import Settings
from .storage.files import atomic_path
from .storage.resident import trim
from .storage.working_copies import here
from .threads import ordered_map
from .verify import Pairs, Rows, Verifier, thin
from .waiting import Waiting

ROW_GROUP = 1 << 20
# Candidates of lists joined together that are left to be verified later, at the most.
VERIFY_BLOCK = 1 << 18
# Lists are joined together until they have so many rows, or so many queries.
ROWS_TOGETHER, QUERIES_TOGETHER = 1 << 17, 1 << 11
# Pieces of work that may be done while an earlier one, of a long list, is not. Each holds its
# pairs, and candidates as above.
AHEAD = 12
# Queries whose vectors are in memory at once, unless told otherwise.
QUERIES_A_PASS = query_rows(Settings())
# Differences of row ids take half the time of the ids themselves, to write and to read.
PACKED = dict.fromkeys(["row", "earlier_row"], "DELTA_BINARY_PACKED")


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
    rule: CandidateRule
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

    @cached_property
    def origins(self) -> np.ndarray:
        """The centroids on the leading axes."""
        return self.rule.axes.project(self.index.trained.centroids)

    @property
    def own_verifier(self) -> Verifier:
        """The verifier, which need not read the vectors of queries again."""
        return self.verifier.asked_by(self.queries) if self.exact_queries else self.verifier


def _asked(join: Join, shards: list[QueryShard], number: int) -> ListProbes:
    """The rows of these shards that probe a list."""
    ids, errors = [], []
    for shard in shards:
        here = slice(shard.probe_offsets[number], shard.probe_offsets[number + 1])
        ids.append(shard.probe_rows[here].astype(np.uint64) + np.uint64(shard.start))
        errors.append(shard.errors[here])
    row, error = np.concatenate(ids), np.concatenate(errors)
    if join.is_copy is not None and len(row):
        first = ~join.is_copy[row.astype(np.int64)]
        row, error = row[first], error[first]
    return ListProbes(number, row, error if join.exact_queries else np.zeros_like(error))


def join_lists(join: Join, shards: list[QueryShard], numbers: np.ndarray) -> Joined:
    """Candidates of some lists, whose queries are read together.

    Where they are many, they are verified here, by and by.
    """
    counts = Counts(lists=len(numbers))
    asked = [a for number in numbers if len((a := _asked(join, shards, int(number))).ids)]
    starts = np.array([shard.start for shard in shards], np.uint64)
    joined = Joined([Listed(join.max_partners, starts) for _ in asked], counts)
    if not asked:
        return joined
    ids, places = _together(asked)
    some = list_queries(join.rule, join.origins, asked, as_float32(join.queries.take(ids)), places)
    for position, found in _candidates(join, asked, some, counts):
        counts.candidates += len(found)
        joined.wait(position, found)
        if len(joined) >= VERIFY_BLOCK:
            owner, candidates = joined.taken()
            joined.add(owner, candidates, *join.own_verifier(candidates))
    return joined


def _together(asked: list[ListProbes]) -> tuple[np.ndarray, list[np.ndarray]]:
    """All rows that probe some lists, ascending, and places of those of each list."""
    ids, place = np.unique(np.concatenate([a.ids for a in asked]), return_inverse=True)
    return ids, np.split(place, np.cumsum([len(a.ids) for a in asked[:-1]]))


def _candidates(
    join: Join, asked: list[ListProbes], queries: Iterator[ListQueries], counts: Counts
) -> Iterator[tuple[int, Pairs]]:
    """Position in `asked` and candidates, sorted by (row, earlier_row)."""
    for position, (one, own) in enumerate(zip(asked, queries, strict=True)):
        listed = ListJoin(join.index, join.rule, join.book, one.number, join.is_copy, join.device)
        if not len(listed.rows):
            continue
        stop = np.searchsorted(listed.rows, one.ids)
        counts.products += int(stop.sum())
        for hits in listed.hits(stop, own):
            yield position, Pairs(one.ids[hits.query], listed.rows[hits.row], hits.excess)


def _bundles(join: Join, probes: np.ndarray) -> list[np.ndarray]:
    """All lists in order, in bundles; `probes` are the queries of each list."""
    rows, asked = np.cumsum(join.index.list_sizes), np.cumsum(probes)
    full = np.diff(rows // ROWS_TOGETHER) + np.diff(asked // QUERIES_TOGETHER)
    return np.split(np.arange(len(rows)), np.flatnonzero(full) + 1)


def _passes(join: Join, shards: list[QueryShard], most: int | None) -> Iterator[list[np.ndarray]]:
    """The bundles, in passes that have so many probes at the most, or in one."""
    probes = np.sum([np.diff(shard.probe_offsets) for shard in shards], axis=0)
    bundles = _bundles(join, probes)
    if most is None:
        return iter([bundles])
    return batches(bundles, [int(probes[numbers].sum()) for numbers in bundles], most)


def find_pairs(
    join: Join, shards: list[QueryShard], workers: int = 0, most: int = QUERIES_A_PASS
) -> tuple[list[Pairs], Counts]:
    """Near pairs of the rows of these shards with all earlier rows, each list read once.

    Where there are too many vectors to map them all, those of queries are read in passes over the
    shards: a row here and a row there for each list takes longer than all of them for some hundred
    lists.

    Parameters
    ----------
    most
        Queries whose vectors are in memory at once, about.

    Returns
    -------
    One `Pairs` a shard, sorted, and the counts.
    """
    lists = join.index.trained.lists
    reader = QueryReader.of(join.queries, shards, join.is_copy, most, workers)
    merged = [Merged(join.max_partners) for _ in shards]
    total = Counts(lists=lists)
    with task("join", lists, "lists") as progress:
        for bundles in _passes(join, shards, None if reader is None else most):
            own = join if reader is None else replace(join, queries=reader.read(*bundles))
            # Made once, here, and not by each thread.
            _ = own.book, own.origins
            waiting = Waiting(own.own_verifier, merged)
            work = (partial(join_lists, own, shards, numbers) for numbers in bundles)
            for done in ordered_map(lambda work: work(), waiting.beside(work), workers, AHEAD):
                if isinstance(done, Joined):
                    total.add(done.counts)
                    progress.advance(done.counts.lists)
                waiting.take(done)
                trim()
            for part in ordered_map(lambda work: work(), waiting.rest(), workers):
                waiting.take(part)
                trim()
    # Putting pairs in order takes several times their own room.
    several = workers if sum(own.size for own in merged) <= MERGE_AT else 1
    return list(ordered_map(Merged.taken, merged, several)), total


def few_pairs(join: Join, rows: np.ndarray, start: int) -> tuple[Pairs, int]:
    """Near pairs of some rows with all earlier ones, where every pair is looked at.

    Of a few dozen rows calibration sees too few pairs to tell what all of them need.

    Parameters
    ----------
    rows
        int64[n], ascending row ids; memory: 40 bytes for each two of them.
    start
        The first row whose pairs are wanted.

    Returns
    -------
    The pairs, sorted, and how many were looked at.
    """
    ids = rows if join.is_copy is None else rows[~join.is_copy[rows]]
    later = ids[ids >= start]
    one, other = np.nonzero(later[:, None] > ids)
    row, earlier = later[one].astype(np.uint64), ids[other].astype(np.uint64)
    candidates = Pairs(row, earlier, np.zeros(len(row), np.float32))
    # What the SNIP features throw out is not much here.
    raw = join.verifier.raw is not None
    verifier = replace(join.verifier, snip=None) if raw else join.verifier
    places, distance = verifier(candidates)
    found = Pairs(row[places], earlier[places], distance)
    return thin(found, join.max_partners), len(candidates)


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write one shard's pairs, in row groups of about a million."""
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary, SCHEMA, compression="zstd", use_dictionary=False, column_encoding=PACKED
        ) as writer,
    ):
        for start in range(0, max(len(pairs), 1), ROW_GROUP):
            part = pairs[slice(start, start + ROW_GROUP)]
            writer.write_table(pa.table([part.row, part.earlier_row, part.distance], schema=SCHEMA))


def read_pairs(path: Path) -> Pairs:
    """All pairs of a shard."""
    table = pq.read_table(here(path), schema=SCHEMA)
    return Pairs(*(table[name].to_numpy() for name in SCHEMA.names))
