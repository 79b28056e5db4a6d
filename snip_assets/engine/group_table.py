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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import representatives, threads
from .changed import Former, changed_pairs
from .files import atomic_path, open_npy
from .groups import group
from .keep import Copies, keep
from .metadata import Metadata
from .representatives import Representatives

MOST_REPRESENTATIVES = 16
BLOCK_ROWS = 1 << 20
BATCH_GROUPS = 1 << 16
BYTES_A_ROW = 64
# Columns of few values; a dictionary of the others takes twice the time and room.
FEW = ["size", "kept"]
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
    memory_gb: float = 4.0,
) -> dict[str, Any]:
    """Group all rows, decide who stays, and write the folder `out`, replaced as a whole.

    Files: labels.npy (`groups.group`), kept_row.npy, kept_distance.npy, dropped_rows.npy and
    dropped_kept_rows.npy (`keep.keep`), representatives.npy and .arrow (`representatives.write`),
    groups.parquet. Memory: the largest of these, that of `keep.keep`.

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
    memory_gb
        What the table of groups may use, in GiB.

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
        group(new, rows, folder / "labels.npy", max_distance, labels)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as spill:
            if before is not None:
                changed = Path(spill) / "changed.parquet"
                all_labels = open_npy(folder / "labels.npy")
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
            )
        known = None if before is None else Representatives(before)
        count = representatives.write(folder, metadata, known)
        return {**facts, "representatives": count, **write_table(folder, memory_gb)}


def write_table(folder: Path, memory_gb: float = 4.0) -> dict[str, int]:
    """Write `groups.parquet` beside the other files of the folder.

    Goes over the labels once for each range of groups that fits the memory.

    Returns
    -------
    dict
        groups, grouped_rows, largest_group, chained_groups.
    """
    labels = open_npy(folder / "labels.npy")
    span = max(BLOCK_ROWS, int(memory_gb * 2**30 / BYTES_A_ROW))
    known = Representatives(folder)
    facts = {"groups": 0, "grouped_rows": 0, "largest_group": 0, "chained_groups": 0}
    with (
        atomic_path(folder / "groups.parquet") as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd", use_dictionary=FEW) as writer,
    ):
        for low in range(0, len(labels), span):
            for table in _tables(folder, low, min(len(labels), low + span), known):
                writer.write_table(table)
                facts["groups"] += len(table)
                facts["grouped_rows"] += pc.sum(table["size"]).as_py()
                largest = pc.max(table["size"]).as_py()
                facts["largest_group"] = max(facts["largest_group"], largest)
                facts["chained_groups"] += pc.sum(pc.greater(table["kept"], 1)).as_py()
    return facts


def far_groups(folder: Path, count: int = 20) -> pa.Table:
    """The groups whose members lie furthest apart: those that keep most rows, more than one.

    Parameters
    ----------
    folder
        Folder of `duplicate_groups`.
    count
        How many to list at the most.
    """
    best = SCHEMA.empty_table()
    with pq.ParquetFile(folder / "groups.parquet") as file:
        for batch in file.iter_batches(BATCH_GROUPS):
            table = pa.Table.from_batches([batch])
            table = pa.concat_tables([best, table.filter(pc.greater(table["kept"], 1))])
            best = table.sort_by([("kept", "descending"), ("group", "ascending")]).slice(0, count)
    return best


def _tables(folder: Path, low: int, high: int, known: Representatives) -> Iterator[pa.Table]:
    """The groups with labels in [low, high), some at a time."""
    names = ("labels", "kept_row", "kept_distance")
    labels, kept_row, far = (open_npy(folder / f"{name}.npy") for name in names)
    blocks = [slice(b, b + BLOCK_ROWS) for b in range(low, len(labels), BLOCK_ROWS)]
    size = np.zeros(high - low, labels.dtype)
    for block in blocks:
        _count(low, labels[block], size)
    found = np.flatnonzero(size > 1)
    size, place = size[found], np.full(high - low, -1, np.int64)
    place[found] = np.arange(len(found))
    kept, best, most = np.zeros((3, len(found)), np.int64)
    largest = np.zeros(len(found), np.float32)
    for block in blocks:
        _measure(block.start, low, labels[block], kept_row[block], far[block], place, kept, largest)
    for rows, counts in representatives.runs(open_npy(folder / "dropped_kept_rows.npy")):
        _choose(low, rows, counts, labels[rows], place, best, most)
    ends = np.zeros(len(found) + 1, np.int64)
    np.cumsum(np.minimum(kept, MOST_REPRESENTATIVES), out=ends[1:])
    members, taken = np.zeros(ends[-1], np.uint64), ends[:-1].copy()
    for block in blocks:
        _collect(block.start, low, labels[block], kept_row[block], place, taken, ends, members)

    def table(start: int) -> pa.Table:
        inside = slice(start, start + BATCH_GROUPS)
        cut = ends[start : start + BATCH_GROUPS + 1]
        lists = pa.ListArray.from_arrays(
            pa.array((cut - cut[0]).astype(np.int32)), pa.array(members[cut[0] : cut[-1]])
        )
        numbers = (found[inside] + low, size[inside], kept[inside], best[inside])
        columns = [*(a.astype(np.uint64) for a in numbers), known.take(best[inside])["url"], lists]
        return pa.table([*columns, pa.array(largest[inside])], schema=SCHEMA)

    # The next ones are looked up while one is written.
    yield from threads.ordered_map(table, range(0, len(found), BATCH_GROUPS), 2)


@numba.njit(nogil=True, cache=True)
def _count(low, labels, size):
    for label in labels:
        at = np.int64(label) - low
        if 0 <= at < len(size):
            size[at] += 1


@numba.njit(nogil=True, cache=True)
def _place(label, low, place):
    """Number of a group among those found, or -1."""
    at = np.int64(label) - low
    return place[at] if 0 <= at < len(place) else -1


@numba.njit(nogil=True, cache=True)
def _measure(first, low, labels, kept_row, far, place, kept, largest):
    for i in range(len(labels)):
        at = _place(labels[i], low, place)
        if at >= 0:
            kept[at] += kept_row[i] == first + i
            largest[at] = max(largest[at], far[i])


@numba.njit(nogil=True, cache=True)
def _choose(low, rows, counts, labels, place, best, most):
    for i in range(len(rows)):
        at = _place(labels[i], low, place)
        if at >= 0 and counts[i] > most[at]:
            most[at] = counts[i]
            best[at] = rows[i]


@numba.njit(nogil=True, cache=True)
def _collect(first, low, labels, kept_row, place, taken, ends, members):
    for i in range(len(labels)):
        at = _place(labels[i], low, place)
        if at >= 0 and kept_row[i] == first + i and taken[at] < ends[at + 1]:
            members[taken[at]] = first + i
            taken[at] += 1
