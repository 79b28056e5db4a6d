"""The metadata of all shards: find a column whatever its case, read values by row id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError
from .shards import Registry, parquet_file

URL_NAMES = ("url",)
CAPTION_NAMES = ("caption", "text")
MD5_NAMES = ("md5",)


@dataclass(frozen=True)
class Metadata:
    """Metadata shards as one table of rows.

    Attributes
    ----------
    keys
        Shard keys by ordinal.
    paths
        A parquet file a shard.
    offsets
        int64[S + 1]: row ids at which the shards start.
    """

    keys: list[str]
    paths: list[Path]
    offsets: np.ndarray

    @classmethod
    def of(cls, registry: Registry) -> Metadata:
        """The metadata of a registry."""
        return cls(registry.keys, [s.metadata for s in registry.shards], registry.offsets)

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(self.offsets[-1])

    def take(self, rows: np.ndarray, names: Sequence[str]) -> pa.Array:
        """Values of a text column by row id; null where a shard has no such column.

        Reads each row group that holds a wanted row once, this column only. Memory: the values
        asked for and the column of one row group.

        Parameters
        ----------
        rows
            int64[n] row ids in ascending order.
        names
            Names of the column, any case; the first that a shard has is read.

        Returns
        -------
        pyarrow.Array
            large_string[n].
        """
        cuts = np.searchsorted(rows, self.offsets)
        parts: list[pa.Array] = []
        for ordinal in np.flatnonzero(np.diff(cuts)):
            inside = rows[cuts[ordinal] : cuts[ordinal + 1]] - self.offsets[ordinal]
            parts += _take_shard(self.paths[ordinal], inside, names)
        return pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())


def _take_shard(path: Path, inside: np.ndarray, names: Sequence[str]) -> Iterator[pa.Array]:
    with parquet_file(path) as file:
        column = find_column(file.schema_arrow, names)
        if column is None:
            yield pa.nulls(len(inside), pa.large_string())
            return
        for number, start, stop in row_groups(file):
            low, high = np.searchsorted(inside, [start, stop])
            if low < high:
                values = read_group(path, file, number, [column]).column(0)
                taken = values.take(pa.array(inside[low:high] - start))
                yield pa.concat_arrays(as_text(path, taken).chunks)


def row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Yield number, first row and end row of each row group."""
    start = 0
    for number in range(file.num_row_groups):
        stop = start + file.metadata.row_group(number).num_rows
        yield number, start, stop
        start = stop


def read_group(path: Path, file: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
    """Some columns of a row group.

    Raises
    ------
    BadInputError
        The file is damaged.
    """
    try:
        return file.read_row_group(number, columns)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{path}: row group {number} cannot be read ({error}); fetch the file again."
        ) from error


def find_column(schema: pa.Schema, names: Sequence[str]) -> str | None:
    """The column called by one of `names` in any case: the first name that is there."""
    by_name = {field.name.lower(): field.name for field in reversed(list(schema))}
    return next((by_name[name] for name in names if name in by_name), None)


def as_text(path: Path, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as large_string.

    Raises
    ------
    BadInputError
        It holds something that is no text.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        return values.cast(pa.large_string())
    except pa.ArrowException as error:
        raise BadInputError(f"{path}: a column of text is {values.type}: {error}.") from error


def describe(schema: pa.Schema) -> str:
    """Columns and their types, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
