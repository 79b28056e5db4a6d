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


def _first_version(path):
    """Have a file say that its format version is 1, as DuckDB does under any types."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert data[footer : footer + 2] == b"\x15\x04"
    data[footer + 1] = 2
    path.write_bytes(bytes(data))


def test_files_without_a_schema_of_arrow_keep_types_and_notes(tmp_path):
    columns = {
        "time": pa.array([1600000000123456789] * 9, pa.timestamp("ns")),
        "count": pa.array([4_000_000_000] * 9, pa.uint32()),
        "counts": pa.array([[4_000_000_000]] * 9, pa.list_(pa.uint32())),
    }
    source, copy = tmp_path / "a.parquet", tmp_path / "b.parquet"
    with pq.ParquetWriter(source, pa.table(columns).schema, store_schema=False) as writer:
        writer.write_table(pa.table(columns))
        writer.add_key_value_metadata({"licence": "CC-BY"})
    _first_version(source)
    assert pq.read_metadata(source).format_version == "1.0"
    filter_parquet(source, copy, np.arange(9) % 2 == 0)
    kept = pq.read_table(copy)
    assert kept.equals(pq.read_table(source).slice(0, 5))
    assert pq.read_metadata(copy).metadata == {b"licence": b"CC-BY"}


def test_lists_keep_the_name_of_what_they_hold_and_its_codec(tmp_path):
    table = pa.table({"tags": [["a"]] * 9})
    source, copy = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for compliant in (True, False):
        pq.write_table(table, source, use_compliant_nested_type=compliant, compression="zstd")
        filter_parquet(source, copy, np.ones(9, bool))
        one, other = (pq.read_metadata(path).row_group(0).column(0) for path in (source, copy))
        assert one.path_in_schema == other.path_in_schema
        assert one.compression == other.compression == "ZSTD"
        assert pq.read_schema(copy) == pq.read_schema(source)
