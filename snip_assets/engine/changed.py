"""What an arrival changes: the pairs of the groups that got a new pair.

Who stays in a group depends on the pairs of that group alone. So after an arrival only groups with
a new pair are decided again, from all their pairs; what was decided about the others holds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .pair_files import SCHEMA, limit, stream


@dataclass(frozen=True)
class Former:
    """An earlier run of `duplicate_groups` that still holds, for fewer pairs.

    Attributes
    ----------
    folder
        What it wrote, with the same `max_distance`.
    pair_files
        Those that went into it.
    decided
        Whether all but the labels holds too: same rule, same metadata, same copies.
    """

    folder: Path
    pair_files: Collection[Path]
    decided: bool = False


def changed_pairs(
    pair_files: Sequence[Path],
    new: Sequence[Path],
    labels: np.ndarray,
    out: Path,
    max_distance: float | None = None,
) -> None:
    """Write the pairs of all groups that a new pair belongs to as one file of pairs.

    Memory: a byte a row, and the fixed buffers of `pair_files.stream`.

    Parameters
    ----------
    pair_files
        All.
    new
        Those of them that came since.
    labels
        uint32 or uint64[N], of all pairs.
    out
        File to write.
    max_distance
        Pairs further apart do not count, and are left out.
    """
    most, rows = limit(max_distance), len(labels)
    touched = np.zeros(rows, np.bool_)
    for pairs in stream(new, rows, "New pairs"):
        _touch(pairs.row, pairs.distance, most, labels, touched)
    with pq.ParquetWriter(out, SCHEMA, compression="lz4") as writer:
        for pairs in stream(pair_files, rows, "Changed groups"):
            inside = _inside(pairs.row, pairs.distance, most, labels, touched)
            if len(inside):
                row, earlier = (a[inside].view(np.uint64) for a in (pairs.row, pairs.earlier_row))
                columns = [pa.array(a) for a in (row, earlier, pairs.distance[inside])]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


@numba.njit(nogil=True, cache=True)
def _touch(row, distance, most, labels, touched):
    for i in range(len(row)):
        if distance[i] <= most:
            touched[labels[row[i]]] = True


@numba.njit(nogil=True, cache=True)
def _inside(row, distance, most, labels, touched):
    found = np.empty(len(row), np.int64)
    count = 0
    for i in range(len(row)):
        if distance[i] <= most and touched[labels[row[i]]]:
            found[count] = i
            count += 1
    return found[:count]
