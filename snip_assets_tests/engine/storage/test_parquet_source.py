"""Parquet files by url, in a store that fails."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from snip_assets.engine.storage.parquet_source import parquet_file, parquet_rows
from snip_assets.engine.storage.remote import DownloadError
from snip_assets.engine.storage.remote_files import as_path


@pytest.mark.parametrize("error", [RuntimeError("wrong checksum"), TimeoutError("no answer")])
def test_a_store_that_fails_is_no_damaged_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"url": [str(n) for n in range(1000)]}), whole)
    path = as_path("memory://failing/metadata_0000.parquet")
    path.write_bytes(whole.getvalue())
    opened = parquet_file(path)

    def read(*_: int) -> bytes:
        raise error

    monkeypatch.setattr(MemoryFile, "read", read)
    with pytest.raises(DownloadError, match=rf"metadata_0000\.parquet: cannot be read .*{error}"):
        parquet_rows(path)
    monkeypatch.undo()
    assert opened.read().num_rows == parquet_rows(path) == 1000
