"""The folder of the groups: labels, decision, representatives, and a table of the groups.

`groups.parquet` has a row for each group of two rows or more, by group:

    group             uint64          smallest row id of the component
    size              uint64          its rows
    kept              uint64          rows of it that stay; more than one where a chain joins rows
                                      that are not within max_distance of each other
    representative    uint64          the kept row that explains most others (ties: lowest row id)
    url               large_string    of the representative
    representatives   list<uint64>    its kept rows, the first 16 by row id
    largest_distance  float32         of a dropped member to the kept row that explains it
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import representatives, threads
from .changed import Former, changed_pairs
from .given_up import GivenUp
from .groups import group
from .keep import keep
from .metadata import Metadata
from .pair_files import Copies
from .representatives import Representatives
from .storage.external_sort import PairSorter
from .storage.files import atomic_path, open_npy
from .storage.working_copies import here

MOST_REPRESENTATIVES = 16
BLOCK_ROWS = 1 << 20
BATCH_GROUPS = 1 << 16
# Columns of few values; a dictionary of the others takes twice the time and room.
FEW = ["size", "kept"]
_IDS = ["group", "representative", "representatives.list.element"]
PACKED = dict.fromkeys(_IDS, "DELTA_BINARY_PACKED")
SCHEMA = pa.schema(
    [
        ("group", pa.uint64()),
        ("size", pa.uint64()),
        ("kept", pa.uint64()),
        ("representative", pa.uint64()),
        ("url", pa.large_string()),
        ("representatives", pa.list_(pa.uint64())),
        ("largest_distance", pa.float32()),
    ]
)


def duplicate_groups(
    pair_files: Sequence[Path],
    rows: int,
    out: Path,
    *,
    max_distance: float | None = None,
    rule: str = "neighbours",
    metadata: Metadata | None = None,
    copies: Copies | None = None,
    former: Former | None = None,
    given_up: GivenUp | None = None,
) -> dict[str, Any]:
    """Group all rows, decide who stays, and write the folder `out`, replaced as a whole.

    Files: labels.npy (`groups.group`), kept_row.npy, kept_distance.npy, dropped_rows.npy and
    dropped_kept_rows.npy (`keep.keep`), representatives.npy and .arrow (`representatives.write`),
    groups.parquet. Memory: that of `keep.keep` and, beside it, a `Sorter`; 64 bytes a row of
    `BATCH_GROUPS` groups.

    Parameters
    ----------
    pair_files, rows, max_distance
        As in `groups.extend`.
    rule, metadata, copies
        As in `keep.keep`; without metadata, urls are null.
    former
        An earlier run, whose pairs are not read again for the components; where its decision
        holds, only the groups that got a new pair are decided again. The files are the same bytes
        without.
    given_up
        As in `keep.keep`.

    Returns
    -------
    dict
        rows, kept, dropped, groups, grouped_rows, largest_group, chained_groups (groups that keep
        more than one row), representatives.
    """
    paths, labels, before = list(pair_files), None, None
    if former is not None:
        labels = former.folder / "labels.npy"
        before = former.folder if former.decided else None
    new = [path for path in paths if former is None or path not in former.pair_files]
    with atomic_path(out) as folder:
        folder.mkdir()
        with (
            tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as spill,
            ThreadPoolExecutor(1, "groups") as beside,
        ):
            group(new, rows, folder / "labels.npy", max_distance, labels)
            all_labels = open_npy(folder / "labels.npy")
            # For the table, which waits for what is kept.
            by_group = threads.prefetch(_rows_by_group(all_labels, Path(spill)), beside)
            if before is not None:
                changed = Path(spill) / "changed.parquet"
                changed_pairs(paths, new, all_labels, changed, max_distance)
                paths = [changed]
            facts = keep(
                paths,
                rows,
                rule,
                folder,
                max_distance=max_distance,
                metadata=metadata,
                copies=copies,
                before=before,
                given_up=given_up,
            )
            known = None if before is None else Representatives(before)
            count = representatives.write(folder, metadata, known)
            return {**facts, "representatives": count, **_write_table(folder, by_group)}


def _write_table(folder: Path, by_group: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Write `groups.parquet` beside the other files of the folder; what there is of groups."""
    facts = {"groups": 0, "grouped_rows": 0, "largest_group": 0, "chained_groups": 0}
    known = Representatives(folder)
    with (
        atomic_path(folder / "groups.parquet") as temporary,
        pq.ParquetWriter(
            temporary, SCHEMA, compression="zstd", use_dictionary=FEW, column_encoding=PACKED
        ) as writer,
        ThreadPoolExecutor(1, "write") as pool,
    ):
        writing: Future[None] | None = None
        # The next ones are looked up while some are written.
        groups = _some_groups(by_group)
        for table in threads.ordered_map(lambda some: _table(folder, known, *some), groups, 2):
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.write_table, table)
            facts["groups"] += len(table)
            facts["grouped_rows"] += pc.sum(table["size"]).as_py()
            facts["largest_group"] = max(facts["largest_group"], pc.max(table["size"]).as_py())
            facts["chained_groups"] += pc.sum(pc.greater(table["kept"], 1)).as_py()
        if writing is not None:
            writing.result()
    return facts


def top_groups(
    folder: Path, most: Mapping[str, int], columns: Sequence[str] = tuple(SCHEMA.names)
) -> dict[str, pa.Table]:
    """The groups with the largest values of some columns; ties: lowest group first.

    Parameters
    ----------
    folder
        Folder of `duplicate_groups`.
    most
        How many groups to list at the most, by column.
    columns
        Of `groups.parquet`, with `group` and those of `most`.
    """
    best = {by: SCHEMA.empty_table().select(list(columns)) for by in most}
    with pq.ParquetFile(here(folder / "groups.parquet")) as file:
        for batch in file.iter_batches(BATCH_GROUPS, columns=list(columns)):
            table = pa.Table.from_batches([batch])
            for by, count in most.items():
                known = best[by]
                # Groups come in ascending order: a later one must be larger.
                full = len(known) >= count > 0
                new = table.filter(pc.greater(table[by], known[by][-1])) if full else table
                if len(new):
                    order = [(by, "descending"), ("group", "ascending")]
                    best[by] = pa.concat_tables([known, new]).sort_by(order).slice(0, count)
    return best


def _rows_by_group(labels: np.ndarray, spill: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Group and row of all rows but the first of each group, sorted; cut between groups."""
    sorter = PairSorter(spill, labels.dtype)
    for start in range(0, len(labels), BLOCK_ROWS):
        sorter.append(*_later(labels[start : start + BLOCK_ROWS], start))
    yield from _whole(sorter.blocks())


def _some_groups(
    by_group: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some groups at a time: where each begins, and the end; rows by group, ascending."""
    for group_, row in by_group:
        # Where groups begin, and the end.
        cuts = np.flatnonzero(np.concatenate([[True], group_[1:] != group_[:-1], [True]]))
        for first in range(0, len(cuts) - 1, BATCH_GROUPS):
            cut = cuts[first : first + BATCH_GROUPS + 1]
            roots, begins = group_[cut[:-1]], cut - cut[0]
            # The root of a group is its first row, and has no label but itself.
            yield begins + np.arange(len(cut)), np.insert(row[cut[0] : cut[-1]], begins[:-1], roots)


@numba.njit(nogil=True, cache=True)
def _later(labels, start):
    """Group and row of all rows but the first of each group."""
    found, count = np.empty((2, len(labels)), np.uint64), 0
    for place in range(len(labels)):
        found[0, count], found[1, count] = labels[place], start + place
        count += labels[place] != start + place
    return found[0, :count], found[1, :count]


def _whole(
    blocks: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same blocks, cut between groups."""
    group_, row = np.empty((2, 0), np.uint64)
    for block in blocks:
        group_, row = (np.append(group_, block[0]), np.append(row, block[1])) if len(row) else block
        # The last group may go on in the next block.
        last = int(np.searchsorted(group_, group_[-1])) if len(group_) else 0
        if last:
            yield group_[:last], row[:last]
            group_, row = group_[last:], row[last:]
    if len(row):
        yield group_, row


def _table(folder: Path, known: Representatives, begins: np.ndarray, rows: np.ndarray) -> pa.Table:
    """Lines of `groups.parquet`; `begins` and `rows` as `_some_groups` yields them."""
    places, count = rows.astype(np.int64), len(begins) - 1
    kept = np.asarray(open_npy(folder / "kept_row.npy")[places]).astype(np.uint64)
    far = np.asarray(open_npy(folder / "kept_distance.npy")[places])
    stay, best = np.empty((2, count), np.uint64)
    largest, members = np.empty(count, np.float32), np.empty(len(rows), np.uint64)
    ends = np.zeros(count + 1, np.int32)
    most = MOST_REPRESENTATIVES
    _describe(begins, rows, kept, far, most, stay, best, largest, members, ends)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(members[: ends[-1]]))
    size = np.diff(begins).astype(np.uint64)
    (urls,) = known.take(best, "url")
    columns = [rows[begins[:-1]], size, stay, best, urls, lists, largest]
    return pa.table(columns, schema=SCHEMA)


@numba.njit(nogil=True, cache=True)
def _describe(begins, rows, kept, far, most, stay, best, largest, members, ends):
    """Fill in kept, representative and largest_distance of each group, and the lists of kept rows.

    Group `g` has the rows `begins[g]` to `begins[g + 1]`, ascending; its kept rows, `most` at the
    most, become `members[ends[g]:ends[g + 1]]`.
    """
    explained = np.zeros(len(rows), np.int64)
    for group_ in range(len(begins) - 1):
        low, high = begins[group_], begins[group_ + 1]
        own, filled = rows[low:high], ends[group_]
        for i in range(low, high):
            explained[low + np.searchsorted(own, kept[i])] += 1
        stay[group_], largest[group_], most_explained = 0, 0.0, 0
        for i in range(low, high):
            largest[group_] = max(largest[group_], far[i])
            if kept[i] == rows[i]:
                if stay[group_] < most:
                    members[filled] = rows[i]
                    filled += 1
                stay[group_] += 1
                if explained[i] > most_explained:
                    best[group_], most_explained = rows[i], explained[i]
        ends[group_ + 1] = filled
