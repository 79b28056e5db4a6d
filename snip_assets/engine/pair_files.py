"""Pairs streamed from their parquet files, block by block, checked on the way.

A pair is `row` (uint64 row id), `earlier_row` < `row`, and `distance` (float32, squared L2 of the
L2-normalised raw features). A pair counts when its distance is at most `max_distance`, both
compared as float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import progress
from .errors import BadInputError

BLOCK_PAIRS = 1 << 20
SCHEMA = pa.schema([("row", pa.uint64()), ("earlier_row", pa.uint64()), ("distance", pa.float32())])


class Pairs(NamedTuple):
    """A block of pairs.

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
    """Type that holds a row id of `rows` rows and one value more: uint32 below 2^32 rows."""
    return np.uint32 if rows < 2**32 else np.uint64


def stream(pair_files: Sequence[Path], rows: int, label: str) -> Iterator[Pairs]:
    """Yield all pairs in blocks; the next block is read while the last one is worked on.

    Memory: three blocks of `BLOCK_PAIRS` pairs, and one row group of a file.

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
            blocks = _read(path, rows)
            ahead = pool.submit(next, blocks, None)
            while (block := ahead.result()) is not None:
                ahead = pool.submit(next, blocks, None)
                yield block
            task.advance()


def gathered(pair_files: Sequence[Path], rows: int, out: Path) -> Path:
    """All pairs in one file, `out`: many small files take longer to open than to read."""
    return _written(stream(pair_files, rows, "Pairs"), out)


def renumbered(pairs: Path, rows: int, out: Path) -> np.ndarray:
    """The same pairs in the file `out`, rows numbered anew: those that are in a pair, in order.

    Returns
    -------
    int64[m]
        Their row ids.
    """
    paired = np.zeros(rows, np.bool_)
    for block in stream([pairs], rows, "Rows in pairs"):
        paired[block.row] = paired[block.earlier_row] = True
    ids = np.flatnonzero(paired)
    del paired

    def block_of(pairs: Pairs) -> Pairs:
        row, earlier_row = (np.searchsorted(ids, ends) for ends in (pairs.row, pairs.earlier_row))
        return Pairs(row, earlier_row, pairs.distance)

    _written(map(block_of, stream([pairs], rows, "Pairs")), out)
    return ids


def _written(blocks: Iterable[Pairs], out: Path) -> Path:
    """Neither packed nor in dictionaries: it is read many times, and soon deleted."""
    with pq.ParquetWriter(out, SCHEMA, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            columns = [block.row.view(np.uint64), block.earlier_row.view(np.uint64), block.distance]
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return out


def _read(path: Path, rows: int) -> Iterator[Pairs]:
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow)
            start = 0
            for batch in file.iter_batches(BLOCK_PAIRS, columns=SCHEMA.names):
                block = _block(path, batch)
                if (bad := _first_bad(block.row, block.earlier_row, rows)) >= 0:
                    raise BadInputError(
                        f"{path}: pair {start + bad} joins row {block.row[bad]} with earlier row "
                        f"{block.earlier_row[bad]}, which cannot be among {rows} rows; make the "
                        "pairs again."
                    )
                yield block
                start += len(batch)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file; make the pairs of this shard.") from error
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); make the pairs again.") from error


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for field in SCHEMA:
        if field.name not in schema.names or schema.field(field.name).type != field.type:
            raise BadInputError(
                f"{path}: no column {field.name} of type {field.type}; it has "
                f"{', '.join(f'{f.name} {f.type}' for f in schema)}. Is it a file of pairs?"
            )


def _block(path: Path, batch: pa.RecordBatch) -> Pairs:
    if any(batch.column(name).null_count for name in SCHEMA.names):
        raise BadInputError(f"{path}: holds nulls; make the pairs again.")
    row, earlier_row, distance = (
        batch.column(name).to_numpy(zero_copy_only=False) for name in SCHEMA.names
    )
    return Pairs(row.view(np.int64), earlier_row.view(np.int64), distance)


@numba.njit(nogil=True, cache=True)
def _first_bad(row: np.ndarray, earlier_row: np.ndarray, rows: int) -> int:
    for i in range(len(row)):
        if not 0 <= earlier_row[i] < row[i] < rows:
            return i
    return -1
