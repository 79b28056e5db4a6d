"""What a report shows of rows: from the metadata, or as the last report had it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine.metadata import Metadata
from snip_assets.engine.shards import Registry
from snip_assets.report.shown_rows import look_up

from .conftest import Finished

ROWS = np.array([0, 3, 249, 250, 500, 749])


@pytest.fixture
def registry(finished: Finished, tmp_path: Path) -> Registry:
    """The same data set with metadata files of its own."""
    folder = tmp_path / "metadata"
    shutil.copytree(finished.run.registry.source.metadata, folder)
    shards = [
        replace(shard, metadata=folder / shard.metadata.name)
        for shard in finished.run.registry.shards
    ]
    return replace(finished.run.registry, shards=shards)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows that were looked up in the metadata, call by call."""
    calls: list[list[int]] = []
    columns = Metadata.columns

    def spied(self: Metadata, rows: np.ndarray, *names: tuple[str, ...]) -> list[pa.Array]:
        calls.append(rows.tolist())
        return columns(self, rows, *names)

    monkeypatch.setattr(Metadata, "columns", spied)
    return calls


def expected(registry: Registry, rows: np.ndarray) -> list[tuple[str, str]]:
    tables = [pq.read_table(s.metadata, columns=["url", "caption"]) for s in registry.shards]
    lines = [line for table in tables for line in table.to_pylist()]
    return [(lines[row]["url"], lines[row]["caption"]) for row in rows]


def shown(registry: Registry, rows: np.ndarray, kept: Path) -> list[tuple[str, str]]:
    table = look_up(registry, rows, kept)
    places = zip(table["shard"].to_pylist(), table["row_in_shard"].to_pylist(), strict=True)
    assert [registry[key].start + row for key, row in places] == rows.tolist()
    return [(line["url"], line["caption"]) for line in table.to_pylist()]


def test_only_what_was_not_shown_before_is_looked_up(
    registry: Registry, asked: list[list[int]], tmp_path: Path
) -> None:
    kept = tmp_path / "audit" / "shown.parquet"
    for rows in (ROWS, ROWS, np.array([3, 4, 500, 600]), ROWS[:0], ROWS):
        assert shown(registry, rows, kept) == expected(registry, rows)
        assert pq.read_metadata(kept).num_rows == len(rows)
    assert asked == [ROWS.tolist(), [4, 600], [], ROWS.tolist()]


def test_a_metadata_file_that_changed_is_read_again(
    registry: Registry, asked: list[list[int]], tmp_path: Path
) -> None:
    kept, second = tmp_path / "shown.parquet", registry.shards[1].metadata
    shown(registry, ROWS, kept)
    table = pq.read_table(second)
    place = table.schema.get_field_index("caption")
    table = table.set_column(place, "caption", pa.array(["another"] * len(table)))
    pq.write_table(table, second)
    os.utime(second, (1, 1))
    assert shown(registry, ROWS, kept) == expected(registry, ROWS)
    assert asked == [ROWS.tolist(), [250]]


@pytest.mark.parametrize("spoilt", [b"", b"PAR1 and more", "another table"])
def test_a_damaged_file_is_not_believed(
    registry: Registry, spoilt: bytes | str, tmp_path: Path
) -> None:
    kept = tmp_path / "shown.parquet"
    if isinstance(spoilt, bytes):
        kept.write_bytes(spoilt)
    else:
        pq.write_table(pa.table({"url": ["x"]}), kept)
    assert shown(registry, ROWS, kept) == expected(registry, ROWS)
    assert pq.read_metadata(kept).num_rows == len(ROWS)
