"""The representatives: kept rows that explain a dropped one, with their url and md5.

Written once, in one sequential pass over the metadata, so that a drop list can name the urls of
kept rows in any other shard without reading that shard.

Files in the folder of the groups: `representatives.npy` (row ids, ascending) and
`representatives.arrow` (row uint64, dropped uint64, url and md5 large_string, nulls without such a
column; record batches of 65,536 rows, memory-mapped by the reader).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from . import progress, threads
from .metadata import MD5_NAMES, URL_NAMES, Metadata
from .storage.external_sort import ascending
from .storage.files import NpyWriter, atomic_path, open_npy
from .texts import Texts

BATCH_ROWS = 1 << 16
READ_ROWS = 1 << 19
# Some are looked up while some are written.
AT_ONCE = 2
_COLUMNS = {"url": URL_NAMES, "md5": MD5_NAMES}
SCHEMA = pa.schema(
    [
        ("row", pa.uint64()),
        ("dropped", pa.uint64()),
        ("url", pa.large_string()),
        ("md5", pa.large_string()),
    ]
)


def write(folder: Path, metadata: Metadata | None, known: Representatives | None = None) -> int:
    """Write the representatives of a folder that holds `dropped_kept_rows.npy`.

    Memory: url and md5 of 5 x `READ_ROWS` rows, and a row group of these columns a thread.

    Parameters
    ----------
    folder
        Where `keep.keep` wrote.
    metadata
        Where the urls are; None leaves them null.
    known
        Of an earlier run on the same metadata: those are not looked up again.

    Returns
    -------
    Number of representatives.
    """
    kept_rows = open_npy(folder / "dropped_kept_rows.npy")
    count = sum(len(rows) for rows, _ in runs(kept_rows))

    def described(run: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, pa.Table]:
        rows, sizes = run
        numbers = [pa.array(rows.astype(np.uint64)), pa.array(sizes.astype(np.uint64))]
        texts = _texts(metadata, rows, known)
        return rows, pa.Table.from_arrays([*numbers, *texts], schema=SCHEMA)

    with (
        atomic_path(folder / "representatives.arrow") as temporary,
        pa.ipc.new_file(temporary, SCHEMA) as file,
        NpyWriter(folder / "representatives.npy", (count,), kept_rows.dtype) as ids,
        progress.task("Representatives", count) as task,
    ):
        for rows, table in threads.ordered_map(described, runs(kept_rows), AT_ONCE):
            file.write_table(table, max_chunksize=BATCH_ROWS)
            ids.append(rows)
            task.advance(len(rows))
    return count


def _texts(
    metadata: Metadata | None, rows: np.ndarray, known: Representatives | None
) -> list[pa.Array]:
    """Url and md5 of kept rows."""
    if metadata is None:
        return [pa.nulls(len(rows), pa.large_string()) for _ in _COLUMNS]
    if known is None:
        return metadata.columns(rows.astype(np.int64), *_COLUMNS.values())
    held, places = known.of(rows)
    fresh = metadata.columns(rows[~held].astype(np.int64), *_COLUMNS.values())
    wanted = np.empty(len(rows), np.int64)
    wanted[held] = np.arange(len(places))
    wanted[~held] = len(places) + np.arange(len(rows) - len(places))
    return [
        pa.concat_arrays([known.texts[name].take(places), text]).take(pa.array(wanted))
        for name, text in zip(_COLUMNS, fresh, strict=True)
    ]


def runs(kept_rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (kept rows, dropped rows of each); all but the last a multiple of BATCH_ROWS."""
    waiting = np.empty(0, kept_rows.dtype), np.empty(0, np.int64)
    for start in range(0, len(kept_rows), READ_ROWS):
        block = np.asarray(kept_rows[start : start + READ_ROWS])
        starts = np.flatnonzero(np.append(True, block[1:] != block[:-1]))
        rows, sizes = block[starts], np.diff(starts, append=len(block))
        if len(waiting[0]) and waiting[0][-1] == rows[0]:
            waiting[1][-1] += sizes[0]
            rows, sizes = rows[1:], sizes[1:]
        rows, sizes = np.append(waiting[0], rows), np.append(waiting[1], sizes)
        # The last row may go on in the next block.
        ready = max(0, len(rows) - 1) // BATCH_ROWS * BATCH_ROWS
        if ready:
            yield rows[:ready], sizes[:ready]
        waiting = rows[ready:], sizes[ready:]
    if len(waiting[0]):
        yield waiting


class Representatives:
    """Look up what is known of kept rows; memory-mapped.

    Attributes
    ----------
    rows
        [n] row ids, ascending.
    texts
        Of each row: url and md5, by place in `rows`.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = open_npy(folder / "representatives.npy")
        self.texts = {name: Texts(folder / "representatives.arrow", name) for name in _COLUMNS}

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows are representatives, and where.

        Parameters
        ----------
        rows
            [n] row ids, ascending.

        Returns
        -------
        held : bool[n]
        places : int64[m]
            Of those that are.
        """
        places = np.searchsorted(self.rows, rows)
        held = places < len(self.rows)
        held[held] = self.rows[places[held]] == rows[held]
        return held, places[held]

    def take(self, kept_rows: np.ndarray, *names: str) -> list[pa.Array]:
        """Their url or md5, in the order asked for.

        Parameters
        ----------
        kept_rows
            [n] row ids, each a representative.
        names
            Of the columns.
        """
        # In order, and of one type: several times as fast.
        order = ascending(kept_rows)
        places = np.searchsorted(self.rows, kept_rows[order].astype(self.rows.dtype))
        return [self.texts[name].take(places, order) for name in names]
