"""The metadata of all shards: find a column whatever its case, read values by row id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import threads
from .errors import BadInputError
from .shards import Registry
from .storage.parquet_source import PLAIN, parquet_file

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
        """Values of a text column by row id: as `columns`, of one."""
        return self.columns(rows, names)[0]

    def columns(self, rows: np.ndarray, *names: Sequence[str]) -> list[pa.Array]:
        """Values of text columns by row id; null where a shard has no such column.

        Reads each row group that holds a wanted row once, these columns only. Memory: the values
        asked for, and the columns of one row group a thread.

        Parameters
        ----------
        rows
            int64[n] row ids in ascending order.
        names
            Names of each column, any case; the first that a shard has is read.

        Returns
        -------
        list of pyarrow.Array
            large_string[n] for each of the names.
        """
        cuts = np.searchsorted(rows, self.offsets)

        def work(ordinal: int) -> list[list[pa.Array]]:
            inside = rows[cuts[ordinal] : cuts[ordinal + 1]] - self.offsets[ordinal]
            return list(_take_shard(self.paths[ordinal], inside, names))

        found = threads.ordered_map(work, np.flatnonzero(np.diff(cuts)).tolist(), 0)
        parts = [group for groups in found for group in groups]
        none = pa.array([], pa.large_string())
        return [pa.concat_arrays([none, *(part[n] for part in parts)]) for n in range(len(names))]


def _take_shard(
    path: Path, inside: np.ndarray, names: Sequence[Sequence[str]]
) -> Iterator[list[pa.Array]]:
    """The columns, row group by row group."""
    with parquet_file(path) as file:
        columns = [find_column(file.schema_arrow, some) for some in names]
        there = list(dict.fromkeys(column for column in columns if column is not None))
        for number, start, stop in row_groups(file):
            low, high = np.searchsorted(inside, [start, stop])
            if low == high:
                continue
            places = pa.array(inside[low:high] - start)
            group = read_group(path, file, number, there) if there else None
            yield [
                pa.nulls(len(places), pa.large_string())
                if group is None or column is None
                else pa.concat_arrays(as_text(path, taken(group[column], places)).chunks)
                for column in columns
            ]


def taken(values: pa.ChunkedArray, places: pa.Array) -> pa.ChunkedArray:
    """Some of a column; Arrow takes nothing from views."""
    plain = PLAIN.get(values.type)
    return (values.cast(plain) if plain else values).take(places)


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


def require_text_columns(path: Path, schema: pa.Schema) -> None:
    """Refuse metadata whose url, caption or MD5 could not be read later.

    Raises
    ------
    BadInputError
        There are two of that name, or it holds no text; other columns may be anything but views
        inside of something else.
    """
    for field in schema:
        if field.type not in PLAIN and "_view" in str(field.type):
            raise BadInputError(
                f"{path}: column {field.name} holds {field.type}, which Arrow does not filter; "
                "write it without views."
            )
    for names in (URL_NAMES, CAPTION_NAMES, MD5_NAMES):
        column = find_column(schema, names)
        if column is None:
            continue
        if len(places := schema.get_all_field_indices(column)) > 1:
            raise BadInputError(f"{path}: {len(places)} columns are named {column}; rename others.")
        try:
            as_text(path, pa.chunked_array([], schema.field(column).type))
        except BadInputError as error:
            raise BadInputError(
                f"{path}: column {column} holds {schema.field(column).type}, not text; make text "
                "of it, or give it another name."
            ) from error


def as_text(path: Path, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as large_string.

    Raises
    ------
    BadInputError
        It holds something that is no text.
    """
    try:
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        return values.cast(pa.large_string())
    except pa.ArrowException as error:
        raise BadInputError(f"{path}: a column of text is {values.type}: {error}.") from error


def describe(schema: pa.Schema) -> str:
    """Columns and their types, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
