"""Copies of parquet files take the memory of a row group and a batch, whatever the file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.storage.parquet_filter import filter_parquet

MIB = 1 << 20


def wide(path, groups, rows, size):
    """A file of row groups with texts of some length that no codec shortens."""
    random, schema = np.random.default_rng(0), pa.schema([("caption", pa.string())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for _ in range(groups):
            texts = random.integers(97, 123, (rows, size), np.uint8)
            table = pa.table([pa.array([row.tobytes().decode() for row in texts])], schema=schema)
            writer.write_table(table)


class Watched:
    """A column of nulls that notes what each batch has, and what Arrow holds then."""

    def __init__(self):
        self.before, self.rows, self.held = pa.total_allocated_bytes(), [], []
        self.column = pa.field("seen", pa.null()), self.values

    def values(self, start, mask):
        self.rows.append(len(mask))
        self.held.append(pa.total_allocated_bytes() - self.before)
        return pa.nulls(int(mask.sum()))


def test_row_groups_behind_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("snip_assets.engine.storage.parquet_filter.BATCH_ROWS", 16)
    wide(tmp_path / "a.parquet", 40, 16, MIB // 16)
    seen = Watched()
    filter_parquet(
        tmp_path / "a.parquet", tmp_path / "b.parquet", np.ones(640, bool), [seen.column]
    )
    assert max(seen.held) < 12 * MIB


def test_long_rows_come_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("snip_assets.engine.storage.parquet_filter.BATCH_BYTES", MIB)
    wide(tmp_path / "a.parquet", 10, 32, MIB // 16)
    seen = Watched()
    filter_parquet(
        tmp_path / "a.parquet", tmp_path / "b.parquet", np.ones(320, bool), [seen.column]
    )
    assert sum(seen.rows) == 320
    assert max(seen.rows) <= 16
    assert max(seen.held) < 8 * MIB
    assert pq.read_table(tmp_path / "b.parquet", columns=["caption"]).equals(
        pq.read_table(tmp_path / "a.parquet")
    )


def test_dictionaries_in_nested_columns_of_several_row_groups(tmp_path):
    tags = pa.array([f"tag {row % 7}" for row in range(300)]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array(range(301), pa.int32()), tags)
    table = pa.table({"tags": lists, "of": pa.StructArray.from_arrays([tags], ["tag"])})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    keep = np.arange(300) % 3 > 0
    filter_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet", keep)
    copy = pq.ParquetFile(tmp_path / "b.parquet")
    groups = [copy.read_row_group(number) for number in range(copy.num_row_groups)]
    rows = [row for group in groups for row in group.to_pylist()]
    assert copy.schema_arrow.equals(table.schema)
    assert rows == table.filter(pa.array(keep)).to_pylist()
