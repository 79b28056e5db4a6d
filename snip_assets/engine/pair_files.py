"""Pairs streamed from their parquet files, block by block, checked on the way.

A pair is `row` (uint64 row id), `earlier_row` < `row`, and `distance` (float32, squared L2 of the
L2-normalised raw features). A pair counts when its distance is at most `max_distance`, both
compared as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import progress
from .errors import BadInputError
from .sample import drawn
from .storage.row_file import file_state
from .storage.working_copies import here
from .threads import prefetch

BLOCK_PAIRS = 1 << 20
# Pairs of files that are kept in memory, of one and of all.
SMALL_PAIRS, HELD_PAIRS = 1 << 16, 1 << 21
# (row, earlier_row) of pairs at distance 0 -> bool: are they copies byte for byte?
Copies = Callable[[np.ndarray, np.ndarray], np.ndarray]
SCHEMA = pa.schema([("row", pa.uint64()), ("earlier_row", pa.uint64()), ("distance", pa.float32())])


class PairBlock(NamedTuple):
    """A block of stored pairs, as kernels take them: signed (`verify.Pairs` are those of the join).

    Attributes
    ----------
    row, earlier_row
        int64[n] row ids, earlier_row < row.
    distance
        float32[n].
    """

    row: np.ndarray
    earlier_row: np.ndarray
    distance: np.ndarray


def limit(max_distance: float | None) -> np.float32:
    """`max_distance` as the float32 that distances are compared with; None takes every pair."""
    return np.float32(np.inf if max_distance is None else max_distance)


def row_dtype(rows: int) -> type[np.unsignedinteger]:
    """Type for arrays of row ids in memory: holds those of `rows` rows and one value more.

    uint32 below 2^32 rows, else uint64. (Files of the index need no value more, see
    `index.stored_row_dtype`.)
    """
    return np.uint32 if rows < 2**32 else np.uint64


def stream(pair_files: Sequence[Path], rows: int, label: str) -> Iterator[PairBlock]:
    """Yield all pairs in blocks; the next block is read while the last one is worked on.

    Memory: three blocks of `BLOCK_PAIRS` pairs, one row group of a file, and `HELD_PAIRS` pairs of
    small files (20 bytes each) that are kept for whoever asks for them next.

    Parameters
    ----------
    pair_files
        Parquet files, in any order.
    rows
        Rows of the data set; every row id must be below.
    label
        What the work is called in the progress display.

    Raises
    ------
    BadInputError
        A file is no parquet, lacks a column, holds nulls, or a row id that cannot be.
    """
    with (
        progress.task(label, len(pair_files), "shards") as task,
        ThreadPoolExecutor(1) as pool,
    ):
        for path in pair_files:
            found = blocks(path, rows)
            # What is in memory waits for no other thread.
            yield from found if _held.has(path) else prefetch(found, pool)
            task.advance()


def of_groups(
    pair_files: Sequence[Path], labels: np.ndarray, share: float, seed: int, out: Path
) -> Path:
    """Write all pairs of some random groups to the file `out`.

    Parameters
    ----------
    labels
        [N], group of each row; pairs of later rows are left out.
    share
        Of the groups, to be drawn.
    """
    with pq.ParquetWriter(out, SCHEMA, compression="none", use_dictionary=False) as writer:
        for block in stream(pair_files, 1 << 62, "Pairs of some groups"):
            known = np.flatnonzero(block.row < len(labels))
            inside = known[drawn(labels[block.row[known]], seed, share)]
            columns = (block.row.view(np.uint64), block.earlier_row.view(np.uint64), block.distance)
            writer.write_table(pa.table([a[inside] for a in columns], schema=SCHEMA))
    return out


@dataclass(frozen=True)
class Paired:
    """Pairs of a data set, of which only the rows that are in one are left, numbered anew.

    They are read many times, and soon deleted: raw arrays, 13 bytes a pair.

    Attributes
    ----------
    folder
        Where they lie: both ends as places in `ids`, distance, and whether it is an exact copy.
    ids
        uint32 or uint64[R]: row ids, ascending.
    rows
        Rows of the data set.
    """

    folder: Path
    ids: np.ndarray
    rows: int

    def blocks(self, label: str) -> Iterator[tuple[PairBlock, np.ndarray]]:
        """Yield all pairs in blocks, and which of each are exact copies: bool[n].

        Parameters
        ----------
        label
            What the work is called in the progress display.
        """
        kinds = _arrays(self.ids)
        count = (self.folder / "copy").stat().st_size
        with progress.task(label, count, "pairs") as task, ExitStack() as stack:
            files = [stack.enter_context(open(self.folder / name, "rb")) for name in kinds]
            for _ in range(0, count, BLOCK_PAIRS):
                row, earlier, distance, copy = (
                    np.fromfile(file, kind, BLOCK_PAIRS)
                    for file, kind in zip(files, kinds.values(), strict=True)
                )
                yield PairBlock(row.astype(np.int64), earlier.astype(np.int64), distance), copy
                task.advance(len(copy))


def _arrays(ids: np.ndarray) -> dict[str, Any]:
    kind = row_dtype(len(ids))
    return {"row": kind, "earlier_row": kind, "distance": np.float32, "copy": np.bool_}


def number_rows(
    pair_files: Sequence[Path],
    rows: int,
    out: Path,
    max_distance: float | None = None,
    copies: Copies | None = None,
) -> Paired:
    """Write the pairs within a distance into the folder `out`, as `Paired` reads them.

    Memory: 5 bytes a row (9 from 2^32 rows), and 4 (8) bytes a row in a pair.

    Parameters
    ----------
    pair_files, rows, max_distance
        As in `groups.extend`.
    copies
        Tells which pairs at distance 0 are exact copies; default: all.
    """
    most, marked = limit(max_distance), np.zeros(rows, np.bool_)
    for block in stream(pair_files, rows, "Rows in pairs"):
        mark(*block, most, marked)
    kind = row_dtype(rows)
    ids, place = np.empty(int(np.count_nonzero(marked)), kind), np.empty(rows, kind)
    _number(marked, ids, place)
    del marked
    out.mkdir()
    with ExitStack() as stack:
        files = [stack.enter_context(open(out / name, "wb")) for name in _arrays(ids)]
        for block in stream(pair_files, rows, "Pairs"):
            near = block.distance <= most
            row, earlier, distance = (a[near] for a in block)
            copy = distance == 0
            if copies is not None and copy.any():
                copy[copy] = copies(row[copy], earlier[copy])
            columns = (place[row], place[earlier], distance, copy)
            for file, column, wanted in zip(files, columns, _arrays(ids).values(), strict=True):
                file.write(column.astype(wanted, copy=False).data)
    return Paired(out, ids, rows)


@numba.njit(nogil=True, cache=True)
def mark(row, earlier_row, distance, most, marked):
    """Mark the rows that occur in a pair."""
    for i in range(len(row)):
        if distance[i] <= most:
            marked[row[i]] = True
            marked[earlier_row[i]] = True


@numba.njit(nogil=True, cache=True)
def _number(marked, ids, place):
    count = 0
    for row in range(len(marked)):
        if marked[row]:
            ids[count] = row
            place[row] = count
            count += 1


class _Held:
    """Pairs of small files, kept in memory: a run asks for them a dozen times.

    Those of one folder, until `HELD_PAIRS` are reached.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._found: dict[str, tuple[tuple[int, ...], PairBlock]] = {}
        self._room = HELD_PAIRS
        self._lock = Lock()

    def has(self, path: Path) -> bool:
        """Whether pairs of a file are known, as it was once."""
        return path.parent == self._folder and path.name in self._found

    def get(self, path: Path) -> tuple[tuple[int, ...], PairBlock | None]:
        """State of a file now, and its pairs if they are known."""
        state = file_state(here(path).stat())
        with self._lock:
            known = self._found.get(path.name) if path.parent == self._folder else None
        return state, known[1] if known and known[0] == state else None

    def put(self, path: Path, state: tuple[int, ...], block: PairBlock) -> None:
        """Keep all pairs of a file, if there is room."""
        with self._lock:
            if path.parent != self._folder:
                self._folder, self._found, self._room = path.parent, {}, HELD_PAIRS
            if (former := self._found.pop(path.name, None)) is not None:
                self._room += len(former[1].row)
            if len(block.row) <= self._room:
                self._found[path.name] = state, block
                self._room -= len(block.row)


_held = _Held()


def blocks(path: Path, rows: int) -> Iterator[PairBlock]:
    """All pairs of one file in blocks; see `stream`. The arrays are not to be written to."""
    try:
        state, known = _held.get(path)
        start = 0
        for block in [known] if known else _stored(path, state):
            if (bad := _first_bad(block.row, block.earlier_row, rows)) >= 0:
                raise BadInputError(
                    f"{path}: pair {start + bad} joins row {block.row[bad]} with earlier row "
                    f"{block.earlier_row[bad]}, which cannot be among {rows} rows; make the "
                    "pairs again."
                )
            yield block
            start += len(block.row)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file; make the pairs of this shard.") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); make the pairs again.") from error


def _stored(path: Path, state: tuple[int, ...]) -> Iterator[PairBlock]:
    """The blocks of a file in that state, as they are read."""
    with pq.ParquetFile(path) as file:
        _check_schema(path, file.schema_arrow)
        small = file.metadata.num_rows <= SMALL_PAIRS
        # Threads of Arrow's own are waited for longer than it takes to read little.
        threads = not small
        for batch in file.iter_batches(BLOCK_PAIRS, columns=SCHEMA.names, use_threads=threads):
            block = _block(path, batch)
            if small and len(batch) == file.metadata.num_rows:
                _held.put(path, state, block)
            yield block


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for field in SCHEMA:
        if field.name not in schema.names or schema.field(field.name).type != field.type:
            raise BadInputError(
                f"{path}: no column {field.name} of type {field.type}; it has "
                f"{', '.join(f'{f.name} {f.type}' for f in schema)}. Is it a file of pairs?"
            )


def _block(path: Path, batch: pa.RecordBatch) -> PairBlock:
    if any(batch.column(name).null_count for name in SCHEMA.names):
        raise BadInputError(f"{path}: holds nulls; make the pairs again.")
    row, earlier_row, distance = (
        batch.column(name).to_numpy(zero_copy_only=False) for name in SCHEMA.names
    )
    return PairBlock(row.view(np.int64), earlier_row.view(np.int64), distance)


@numba.njit(nogil=True, cache=True)
def _first_bad(row: np.ndarray, earlier_row: np.ndarray, rows: int) -> int:
    for i in range(len(row)):
        if not 0 <= earlier_row[i] < row[i] < rows:
            return i
    return -1
