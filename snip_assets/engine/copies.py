"""Exact copies: rows whose raw features are equal byte for byte, found by hashing.

A 64-bit xxh3 of each row is kept a shard; equal hashes are confirmed on the bytes themselves, so a
collision never makes a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numba import njit

from .errors import BadInputError
from .features import Features
from .kernels import float_rows
from .kernels.row_hashes import row_hashes
from .pair_files import BLOCK_PAIRS, stream
from .progress import task
from .storage.external_sort import distinct
from .storage.files import NpyWriter, open_npy
from .storage.row_file import RowFile
from .tally import mark_again
from .threads import ordered_map
from .wording import counted

BLOCK = 4096
BUCKET_BYTES = 1 << 30
SHORTEST, LONGEST = 1e-15, 1e15


def check_rows(block: np.ndarray, path: Path, start: int) -> np.ndarray:
    """Lengths of rows; raises BadInputError for the first that cannot be used.

    It is not finite, zero, or so short or long that squares in float32 lose it.

    Parameters
    ----------
    block
        n x dim, any float.
    start
        Row in shard of the first.
    """
    norms = float_rows.lengths(block) if float_rows.readable(block) else _lengths(block)
    if _usable(norms):
        return norms
    # Squares of float32 may have left its range.
    norms = np.linalg.norm(block.astype(np.float64), axis=1)
    if not (bad := ~((norms >= SHORTEST) & (norms <= LONGEST))).any():
        return norms
    row = int(np.flatnonzero(bad)[0])
    what, cure = "not finite (NaN or infinite)", "compute their features again"
    if norms[row] == 0:
        what = "all zeros"
    elif np.isfinite(norms[row]):
        what = f"of length {norms[row]:.3g}, beyond {SHORTEST:g} to {LONGEST:g}"
        cure = "divide all features by a number"
    raise BadInputError(
        f"{path}: row {start + row} is {what} ({counted(int(bad.sum()), 'such row')} among "
        f"rows {start} to {start + len(block) - 1}); {cure}, or drop these rows from features and "
        "metadata (a registered shard then needs `snip shards withdraw`, if it came last, or a new "
        "output folder)."
    )


@njit(nogil=True, cache=True)
def _usable(norms):
    """Whether all lengths are such that float32 can hold their squares."""
    fine = True
    for norm in norms:
        fine &= SHORTEST <= norm <= LONGEST
    return fine


def _lengths(block: np.ndarray) -> np.ndarray:
    rows = torch.from_numpy(block)
    return torch.linalg.vector_norm(rows, dim=1, dtype=_wide(block)).numpy()


def _wide(block: np.ndarray) -> torch.dtype:
    return torch.float64 if block.itemsize == 8 else torch.float32


def hash_shard(source: Path, out: Path, workers: int = 0) -> dict:
    """Check every row of a feature shard and write the hash of each.

    Parameters
    ----------
    source
        .npy, n x dim, float16, float32 or float64.
    out
        .npy, uint64[n].

    Returns
    -------
    Facts: rows, dim, dtype, unit_length (all rows are of length 1 within 1e-2), bytes.
    """
    features = RowFile(source)

    def work(start: int) -> tuple[np.ndarray, float]:
        block = features.block(start, start + BLOCK)
        norms = check_rows(block, source, start)
        return row_hashes(block), float(np.abs(norms - 1).max())

    worst = 0.0
    rows = len(features)
    with NpyWriter(out, (rows,), np.uint64) as writer, task(f"hash {source.stem}", rows) as bar:
        for hashes, off in ordered_map(work, range(0, rows, BLOCK), workers):
            writer.append(hashes)
            worst = max(worst, off)
            bar.advance(len(hashes))
    return {
        "rows": rows,
        "dim": int(features.shape[1]),
        "dtype": str(features.dtype),
        "unit_length": worst < 1e-2,
        "bytes": int(features.array.nbytes),
    }


def copies(
    hash_files: list[Path],
    starts: np.ndarray,
    fresh: np.ndarray | None = None,
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows with the hash of an earlier row, and the first row that has it.

    Works through ranges of hashes, so memory stays near 1 GiB at any size, but for the copies of
    one row, which are together: 80 bytes each.

    Parameters
    ----------
    hash_files
        uint64[n] a shard, by ordinal.
    starts
        int64[S]: row id of the first row of each.
    fresh
        bool[S]: shards whose rows are looked for, among all; default: every one.

    Yields
    ------
    rows : int64[m]
        Later rows, of fresh shards.
    first : int64[m]
        The smallest row id with the same hash.
    """
    maps = [open_npy(f) for f in hash_files]
    wanted = np.ones(len(maps), bool) if fresh is None else fresh
    total = sum(len(own) for own, new in zip(maps, wanted, strict=True) if new)
    buckets = max(1, -(-total * 40 // BUCKET_BYTES))
    edges = [(b << 64) // buckets for b in range(buckets + 1)]
    for low, high in pairwise(edges):
        places = _looked_at(maps, wanted, low, high, workers)
        values = [own[inside] for own, inside in zip(maps, places, strict=True)]
        ids = [inside + int(start) for start, inside in zip(starts, places, strict=True)]
        value, row = _repeated(np.concatenate(values), np.concatenate(ids))
        new = np.ones(len(value), bool)
        new[1:] = value[1:] != value[:-1]
        first = row[np.flatnonzero(new)][np.cumsum(new) - 1]
        later = ~new & wanted[np.searchsorted(starts, row, "right") - 1]
        yield row[later], first[later]


def _looked_at(
    maps: list[np.ndarray], fresh: np.ndarray, low: int, high: int, workers: int
) -> list[np.ndarray]:
    """Places of the hashes from low to high: all of fresh shards, of others those equal to one."""
    inside = {n: _between(own, low, high) for n, own in enumerate(maps) if fresh[n]}
    if len(inside) == len(maps):
        return list(inside.values())
    some = [np.empty(0, np.uint64), *(maps[n][places] for n, places in inside.items())]
    looked_for = Among(distinct(np.concatenate(some)))

    def places(number: int) -> np.ndarray:
        return inside[number] if number in inside else looked_for.places(maps[number])

    return list(ordered_map(places, range(len(maps)), workers))


def _between(hashes: np.ndarray, low: int, high: int) -> np.ndarray:
    """Places of the hashes from low to high, itself not included."""
    if (low, high) == (0, 1 << 64):
        return np.arange(len(hashes))
    return np.flatnonzero((hashes >= np.uint64(low)) & (hashes <= np.uint64(high - 1)))


@njit(nogil=True, cache=True)
def _mark(hashes, low, marks):
    """Mark hashes by their lowest bits."""
    for hash_ in hashes:
        place = np.uint64(hash_) & low
        marks[place >> np.uint64(3)] |= np.uint8(1 << (place & np.uint64(7)))


@njit(nogil=True, cache=True)
def _marked(hashes, low, marks):
    """Which hashes are marked."""
    out = np.empty(len(hashes), np.bool_)
    for i in range(len(hashes)):
        place = np.uint64(hashes[i]) & low
        out[i] = marks[place >> np.uint64(3)] >> np.uint8(place & np.uint64(7)) & 1
    return out


class Among:
    """Which of many hashes are among a few.

    Marks by the lowest bits, less than one in 64 of which is set, leave few to look up one by one.

    Parameters
    ----------
    hashes
        uint64[m], ascending, each once.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes
        bits = max(20, 6 + len(hashes).bit_length())
        self._low, self._marks = np.uint64((1 << bits) - 1), np.zeros(1 << bits - 3, np.uint8)
        _mark(hashes, self._low, self._marks)

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """int64: places in `hashes` of those that are among the few."""
        inside = np.flatnonzero(_marked(hashes, self._low, self._marks))
        few = hashes[inside]
        at = np.minimum(np.searchsorted(self.hashes, few), len(self.hashes) - 1)
        return inside[self.hashes[at] == few] if len(self.hashes) else inside


def first_of(
    hash_files: list[Path], starts: np.ndarray, hashes: np.ndarray, workers: int = 0
) -> np.ndarray:
    """int64[n]: the smallest row id with each of some hashes, which all occur.

    Parameters
    ----------
    hash_files, starts
        As in `copies`.
    hashes
        uint64[n].
    """
    wanted, back = np.unique(hashes, return_inverse=True)
    looked_for, found = Among(wanted), np.full(len(wanted), -1, np.int64)

    def places(path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Backwards, so that the first of a shard is what stays."""
        own = open_npy(path)
        inside = looked_for.places(own)[::-1]
        return inside, np.searchsorted(wanted, own[inside])

    for start, (inside, at) in zip(starts, ordered_map(places, hash_files, workers), strict=True):
        new = found[at] < 0
        found[at[new]] = inside[new] + int(start)
    return found[back]


def _perhaps_repeated(hashes: np.ndarray) -> np.ndarray:
    """Places of hashes that may occur twice: all that do, and one in 16 of the others at the most.

    They are counted by their lowest bits. Memory: 12 to 16 bytes a hash.
    """
    bits = max(20, 4 + len(hashes).bit_length())
    low = np.uint64((1 << bits) - 1)
    marks, again = np.zeros((2, 1 << bits - 3), np.uint8)
    mark_again(hashes & low, 0, 1 << bits, marks, again)
    return np.flatnonzero(_marked(hashes, low, again))


def _repeated(value: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that occur twice or more, with their rows, by value and row."""
    some = _perhaps_repeated(value)
    some = some[np.argsort(value[some], kind="stable")]
    value, row = value[some], row[some]
    same, twice = value[1:] == value[:-1], np.zeros(len(value), bool)
    twice[1:] = same
    twice[:-1] |= same
    return value[twice], row[twice]


def of_pairs(pair_files: list[Path], rows: int, hashes: Features) -> Iterator[np.ndarray]:
    """Later exact copies, as the pairs of their shards tell: int64[m] row ids at a time.

    Rows that differ in length alone are at distance 0 too; by their hashes they are no copies.
    """
    some: list[np.ndarray] = []
    size = 0
    for pairs in stream(pair_files, rows, "Exact copies of earlier shards"):
        same = pairs.distance == 0
        some.append(np.stack([pairs.row[same], pairs.earlier_row[same]]))
        size += some[-1].shape[1]
        # Copies of a shard are copies of rows of many: looked up together, each is opened once.
        if size >= BLOCK_PAIRS:
            yield _same_hashes(np.concatenate(some, axis=1), hashes)
            some, size = [], 0
    if some:
        yield _same_hashes(np.concatenate(some, axis=1), hashes)


def _same_hashes(ends: np.ndarray, hashes: Features) -> np.ndarray:
    later, earlier = ends
    return later[hashes.take(later) == hashes.take(earlier)]


def confirmed(
    features: Features, rows: np.ndarray, first: np.ndarray, workers: int = 0
) -> np.ndarray:
    """bool[m]: whether each row equals its first row byte for byte."""
    equal = np.empty(len(rows), bool)
    order = np.argsort(rows, kind="stable")

    def compare(start: int) -> None:
        part = order[start : start + BLOCK]
        one, other = features.take(rows[part]), features.take(first[part])
        equal[part] = (one.view(np.uint8) == other.view(np.uint8)).all(axis=1)

    for _ in ordered_map(compare, range(0, len(rows), BLOCK), workers):
        pass
    return equal
