"""Groups: the connected components of the pairs, exact, semi-external.

The forest is one label a row in memory; pairs are streamed from disk in any order. Union-find
after Rem with splicing (Patwary, Blair, Manne: Experiments on union-find algorithms for the
disjoint-set data structure, SEA 2010): a parent is never larger than its child, so that the root
of a component is its smallest row id whatever the order of the pairs.

Memory: rows x 4 bytes below 2^32 rows, else rows x 8, and the fixed buffer of
`pair_files.stream` (about 100 MB).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np

from .errors import BadInputError
from .pair_files import limit, row_dtype, stream
from .storage.files import open_npy, write_npy

BLOCK_ROWS = 1 << 22


def extend(
    labels: np.ndarray | None,
    pair_files: Sequence[Path],
    rows: int,
    max_distance: float | None = None,
) -> np.ndarray:
    """Add pairs, and rows that came later, to the components known so far.

    Adding shard by shard gives the same labels as all at once, in any order: the pair files
    that went into `labels` need not be read again.

    Parameters
    ----------
    labels
        uint32 or uint64[n], n <= rows: labels from an earlier call, not changed; None to begin.
    pair_files
        Files of pairs not yet in `labels`.
    rows
        Rows of the data set now.
    max_distance
        Pairs further apart do not count; the same as in earlier calls.

    Returns
    -------
    ndarray
        uint32[rows] (uint64 from 2^32 rows): smallest row id of the component of each row.

    Raises
    ------
    BadInputError
        There are more labels than rows, or a pair file is damaged.
    """
    known = 0 if labels is None else len(labels)
    if known > rows:
        raise BadInputError(f"{known} labels for {rows} rows: labels of another data set?")
    forest = np.empty(rows, row_dtype(rows))
    if labels is not None:
        forest[:known] = labels
    for start in range(known, rows, BLOCK_ROWS):
        stop = min(rows, start + BLOCK_ROWS)
        forest[start:stop] = np.arange(start, stop, dtype=forest.dtype)
    most = limit(max_distance)
    for pairs in stream(pair_files, rows, "Groups"):
        unite(forest, pairs.row, pairs.earlier_row, pairs.distance, most)
    flatten(forest)
    return forest


def group(
    pair_files: Sequence[Path],
    rows: int,
    out: Path,
    max_distance: float | None = None,
    former: Path | None = None,
) -> None:
    """Write `labels.npy`: the smallest row id of the component of each row.

    Parameters
    ----------
    pair_files, rows, max_distance
        As in `extend`.
    out
        File to write.
    former
        labels.npy of fewer shards; then `pair_files` are those of the new shards alone.
    """
    labels = None if former is None else open_npy(former)
    write_npy(out, extend(labels, pair_files, rows, max_distance))


@numba.njit(nogil=True, cache=True)
def unite(
    forest: np.ndarray,
    row: np.ndarray,
    earlier_row: np.ndarray,
    distance: np.ndarray,
    most: np.float32,
) -> None:
    """Join the trees of both ends of each pair with distance <= most.

    Parameters
    ----------
    forest
        uint32 or uint64[rows]: the parent of each row, never larger than the row.
    row, earlier_row
        int64[n].
    distance
        float32[n].
    """
    for i in range(len(row)):
        if not distance[i] <= most:
            continue
        a, b = row[i], earlier_row[i]
        parent_a, parent_b = np.int64(forest[a]), np.int64(forest[b])
        while parent_a != parent_b:
            # Splice: the higher parent's child moves below the lower parent, then climb.
            if parent_a < parent_b:
                a, b = b, a
                parent_a, parent_b = parent_b, parent_a
            forest[a] = parent_b
            if parent_a == a:
                break
            a = parent_a
            parent_a = np.int64(forest[a])


@numba.njit(nogil=True, cache=True)
def flatten(forest: np.ndarray) -> None:
    """Point every row at its root; one pass, as parents come before their children."""
    for row in range(len(forest)):
        forest[row] = forest[np.int64(forest[row])]
