"""Parquet files as users give them, local or by url."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.errors import BadInputError

from .remote_files import is_remote, open_file
from .working_copies import opened

# What views are read as: Arrow neither takes from them nor filters them.
PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def parquet_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def parquet_schema(path: Path) -> pa.Schema:
    """Columns of a parquet file, from its footer."""
    with parquet_file(path) as file:
        return file.schema_arrow


def read_whole(path: Path) -> None:
    """Read every row of a parquet file, a batch at a time.

    Raises
    ------
    BadInputError
        Some of it cannot be read.
    """
    with parquet_file(path) as file, readable(path):
        for _ in file.iter_batches():
            pass


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise BadInputError, which names the file, where what is read of it is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); fetch it again.") from error


def parquet_file(path: Path, *, piece: int = 0) -> pq.ParquetFile:
    """Open a parquet file.

    Parameters
    ----------
    piece
        Bytes of a local file to read at a time, for who wants the first rows alone; default: a
        column of a row group.

    Raises
    ------
    BadInputError
        It is missing, truncated, or not parquet.
    """
    if is_remote(path):
        return _remote_parquet(path)
    try:
        # Arrow would hold all that it read beforehand until the last row group.
        return opened(path, lambda p: pq.ParquetFile(p, buffer_size=piece, pre_buffer=False))
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file.") from error
    except PermissionError as error:
        raise BadInputError(f"{path}: permission denied; make it readable.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        with open(path, "rb") as handle:
            head = handle.read(64).lstrip()
        reason = (
            "an HTML page, not data" if head[:1] == b"<" else "damaged, truncated or no parquet"
        )
        raise BadInputError(f"{path}: {reason} ({error}); fetch it again.") from error


def _remote_parquet(path: Path) -> pq.ParquetFile:
    handle = open_file(path)
    try:
        return pq.ParquetFile(handle)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, truncated or no parquet ({error}).") from error
