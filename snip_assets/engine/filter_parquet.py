"""Keep some rows of a Parquet file: streamed, nothing else changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError
from .files import atomic_path
from .metadata import row_groups
from .shards import parquet_file


def filter_parquet(source: Path, keep: np.ndarray, out: Path) -> int:
    """Write the rows of `source` for which `keep` is true to `out`, atomically.

    Schema, order, compression and the schema's metadata stay; row groups stay apart, and those
    of which no row is kept go. Memory: one row group.

    Parameters
    ----------
    keep
        bool[rows of source].

    Returns
    -------
    Rows kept.

    Raises
    ------
    BadInputError
        The file has another number of rows, or is damaged.
    """
    with parquet_file(source) as file:
        if file.metadata.num_rows != len(keep):
            raise BadInputError(
                f"{source}: {file.metadata.num_rows} rows, but {len(keep)} were to be judged."
            )
        schema = file.schema_arrow
        with (
            atomic_path(out) as temporary,
            pq.ParquetWriter(temporary, schema, compression=compression_of(file)) as writer,
        ):
            for number, start, stop in row_groups(file):
                mask = keep[start:stop]
                if not mask.any():
                    continue
                table = _group(source, file, number)
                if not mask.all():
                    table = table.filter(pa.array(mask))
                writer.write_table(table, row_group_size=len(mask))
    return int(np.count_nonzero(keep))


def _group(source: Path, file: pq.ParquetFile, number: int) -> pa.Table:
    try:
        return file.read_row_group(number)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{source}: row group {number} cannot be read ({error}); fetch the file again."
        ) from error


def compression_of(file: pq.ParquetFile) -> str | dict[str, str]:
    """Compression of each column, as its first row group has it (zstd for an empty file)."""
    if not file.num_row_groups:
        return "zstd"
    group = file.metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    return {c.path_in_schema: _codec(c.compression) for c in columns}


def _codec(name: str) -> str:
    known = {"UNCOMPRESSED": "none", "LZ4_RAW": "lz4"}
    name = known.get(name, name.lower())
    return name if name == "none" or pa.Codec.is_available(name) else "zstd"
