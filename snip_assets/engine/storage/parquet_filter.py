"""Copy some rows of a parquet file: order, schema, compression and file metadata stay.

The row groups of the copy are about as large as those of the source. Memory: one row group and
a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.errors import BadInputError

from .files import atomic_path
from .parquet_source import PLAIN, parquet_file, readable
from .remote_files import is_remote

# Of a batch, at the most: rows, and bytes of them on average.
BATCH_ROWS, BATCH_BYTES = 1 << 16, 1 << 26
MOST_GROUP_ROWS = 1 << 20
# As logical types of Parquet are put into words.
_LATER_TYPES = ("timeUnit=nanoseconds", "bitWidth=32, isSigned=false")

# (first row, rows to keep in this batch) -> an array for the kept rows.
Column = Callable[[int, np.ndarray], pa.Array]


def filter_parquet(
    source: Path,
    out: Path,
    keep: np.ndarray,
    extra: Sequence[tuple[pa.Field, Column]] = (),
) -> None:
    """Write the rows of `source` where `keep` is true.

    Parameters
    ----------
    source
        A parquet file.
    out
        The copy, written atomically; equal input gives equal bytes.
    keep
        bool[rows of source].
    extra
        Further columns: the field, and a function of (first row of the batch, bool[batch]) that
        gives its values for the kept rows of the batch.

    Raises
    ------
    BadInputError
        The file is damaged, has another number of rows, has a column of the same name, or is `out`.
    """
    _require_other(source, out)
    with parquet_file(source) as file:
        if file.metadata.num_rows != len(keep):
            raise BadInputError(
                f"{source}: {file.metadata.num_rows} rows, expected {len(keep)}; put the file "
                "back that was there when the shard was registered."
            )
        schema = file.schema_arrow
        for field, _ in extra:
            if field.name in schema.names:
                raise BadInputError(f"{source}: has a column {field.name} already; rename it.")
            schema = schema.append(field)
        group_rows = _group_rows(file)
        with (
            atomic_path(out) as temporary,
            pq.ParquetWriter(temporary, schema, **writer_options(file)) as writer,
        ):
            if notes := _notes(file):
                writer.add_key_value_metadata(notes)
            waiting: list[pa.RecordBatch] = []
            start = 0
            for batch in _batches(source, file):
                mask = keep[start : start + len(batch)]
                kept = (_filtered(column, pa.array(mask)) for column in batch.columns)
                columns = [*kept, *(values(start, mask) for _, values in extra)]
                waiting.append(pa.RecordBatch.from_arrays(columns, schema=schema))
                start += len(batch)
                waiting = _flush(writer, waiting, group_rows)
            _flush(writer, waiting, None)


def require_apart(sources: Iterable[Path], out: Path) -> None:
    """Raise BadInputError if a copy in `out`, by the name of its source, would overwrite it."""
    for source in sources:
        _require_other(source, out / source.name)


def _require_other(source: Path, target: Path) -> None:
    here = not is_remote(source) and source.exists() and target.exists()
    if here and source.samefile(target):
        raise BadInputError(f"{target}: would overwrite its own source; choose another folder.")


def _batches(source: Path, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    rows = _batch_rows(file)
    with readable(source):
        # Arrow joins no dictionaries in nested columns, as a batch over two row groups would have.
        for group in range(file.num_row_groups):
            yield from file.iter_batches(rows, row_groups=[group])


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows of a batch: fewer where they are long."""
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    return int(np.clip(BATCH_BYTES * file.metadata.num_rows // max(1, size), 1, BATCH_ROWS))


def _flush(
    writer: pq.ParquetWriter, waiting: list[pa.RecordBatch], rows: int | None
) -> list[pa.RecordBatch]:
    """Write row groups of `rows` rows and return what is left; None writes all of it."""
    if not waiting:
        return []
    table = pa.Table.from_batches(waiting)
    size = rows or max(1, len(table))
    while len(table) >= size:
        writer.write_table(table.slice(0, size), row_group_size=size)
        table = table.slice(size)
    return table.to_batches()


def _group_rows(file: pq.ParquetFile) -> int:
    groups = range(file.num_row_groups)
    largest = max((file.metadata.row_group(g).num_rows for g in groups), default=1)
    return min(max(largest, 1), MOST_GROUP_ROWS)


def writer_options(file: pq.ParquetFile) -> dict:
    """Arguments of ParquetWriter that give a file the same form: codecs, dictionaries, version."""
    options: dict = {
        "version": _version(file),
        "store_schema": _has_schema(file),
        "use_deprecated_int96_timestamps": _int96(file.schema),
    }
    if file.num_row_groups:
        group = file.metadata.row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
        codecs = {c.path_in_schema: c.compression for c in chunks}
        options["compression"] = {
            path: "NONE" if codec == "UNCOMPRESSED" else codec for path, codec in codecs.items()
        }
        options["use_dictionary"] = [
            c.path_in_schema for c in chunks if any("DICTIONARY" in e for e in c.encodings)
        ]
        # Else what lists hold would be called `element`, and the codecs fit no column.
        options["use_compliant_nested_type"] = not any(".list.item" in path for path in codecs)
    return options


def _has_schema(file: pq.ParquetFile) -> bool:
    """Whether Arrow has noted its own types in the file."""
    return b"ARROW:schema" in (file.metadata.metadata or {})


def _notes(file: pq.ParquetFile) -> dict[bytes, bytes]:
    """File metadata that is not written with the schema."""
    return {} if _has_schema(file) else file.metadata.metadata or {}


def _version(file: pq.ParquetFile) -> str:
    """The format version: the latest for types that earlier ones lack.

    Others write such types under any version; Arrow would write other types.
    """
    columns = [file.schema.column(number) for number in range(len(file.schema))]
    types = [str(c.logical_type) for c in columns]
    later = any(name in text for text in types for name in _LATER_TYPES)
    mixed = not _int96(file.schema) and any(c.physical_type == "INT96" for c in columns)
    return "2.6" if later or mixed else file.metadata.format_version


def _int96(schema: pq.ParquetSchema) -> bool:
    """Whether times are numbers of 96 bits, as Spark writes them, and none is another."""
    columns = [schema.column(n) for n in range(len(schema))]
    other = any(c.logical_type.type == "TIMESTAMP" for c in columns)
    return not other and any(c.physical_type == "INT96" for c in columns)


def _filtered(column: pa.Array, mask: pa.Array) -> pa.Array:
    plain = PLAIN.get(column.type)
    return column.cast(plain).filter(mask).cast(column.type) if plain else column.filter(mask)
