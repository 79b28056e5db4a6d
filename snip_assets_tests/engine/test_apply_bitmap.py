"""Bitmaps of our own runs on metadata, by the list of shards that lies beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine.apply_bitmap import apply_bitmap
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.shards import Source, discover
from snip_assets.engine.sources import natural


def test_the_bitmap_of_a_run_meets_the_shards_in_the_order_of_the_run(tmp_path):
    """Shards that came later have later rows, whatever their numbers: one of equal size, too."""
    run, metadata = tmp_path / "run", tmp_path / "metadata"
    drop = {"0001": [True, False], "0002": [False, False], "0000": [False, True]}
    (run / "dup_bitmap").mkdir(parents=True)
    metadata.mkdir()
    np.save(run / "dup_bitmap" / "dup_bitmap.npy", np.concatenate(list(drop.values())))
    listed = [{"key": key, "rows": 2} for key in drop]
    (run / "shards.json").write_text(json.dumps({"shards": listed}))
    for key in drop:
        pq.write_table(pa.table({"row": [0, 1]}), metadata / f"metadata_{key}.parquet")
    apply_bitmap(metadata, tmp_path / "out", run / "dup_bitmap" / "dup_bitmap.npy")
    for key, rows in {"0000": [0], "0001": [1], "0002": [0, 1]}.items():
        kept = pq.read_table(tmp_path / "out" / f"metadata_{key}.parquet")
        assert kept["row"].to_pylist() == rows
    # Beside it lies what it is of: offsets from elsewhere need not tell, nor all shards be there.
    bitmap = Path(shutil.copy(run / "dup_bitmap" / "dup_bitmap.npy", run))
    np.save(tmp_path / "offsets.npy", [0, 2, 4, 6])
    again = apply_bitmap(metadata, tmp_path / "again", bitmap, tmp_path / "offsets.npy")
    (metadata / "metadata_0002.parquet").unlink()
    fewer = apply_bitmap(metadata, tmp_path / "fewer", bitmap)
    assert (again.kept, fewer.kept, fewer.missing) == (4, 2, ["0002"])
    for place in ("again", "fewer"):
        kept = pq.read_table(tmp_path / place / "metadata_0001.parquet")
        assert kept["row"].to_pylist() == [1]
    # Numbers do not tell which shard a file is.
    (metadata / "metadata_0001.parquet").rename(metadata / "part-0001.parquet")
    with pytest.raises(BadInputError, match="which of the 3 shards is part-0001"):
        apply_bitmap(metadata, tmp_path / "renamed", bitmap)
    (metadata / "part-0001.parquet").unlink()
    pq.write_table(pa.table({"row": [0, 1, 2]}), metadata / "metadata_0001.parquet")
    with pytest.raises(BadInputError, match="3 rows, but shard 0 has 2"):
        apply_bitmap(metadata, tmp_path / "other", bitmap)


def test_listed_shards_need_no_numbers_in_their_names(tmp_path):
    metadata, keys = tmp_path / "metadata", ["extra", "batch1.5", "batch1"]
    metadata.mkdir()
    for key in keys:
        pq.write_table(pa.table({"row": [0, 1]}), metadata / f"metadata_{key}.parquet")
    bitmap = tmp_path / "dup_bitmap.npy"
    np.save(bitmap, np.array([1, 0, 0, 0, 0, 1], bool))
    with pytest.raises(BadInputError, match="before or after"):
        apply_bitmap(metadata, tmp_path / "unknown", bitmap)
    listed = [{"key": key, "rows": 2} for key in keys]
    (tmp_path / "shards.json").write_text(json.dumps({"shards": listed}))
    apply_bitmap(metadata, tmp_path / "out", bitmap)
    for key, rows in {"extra": [1], "batch1.5": [0, 1], "batch1": [0]}.items():
        kept = pq.read_table(tmp_path / "out" / f"metadata_{key}.parquet")
        assert kept["row"].to_pylist() == rows


def test_shards_are_registered_in_the_order_in_which_a_bitmap_takes_files(tmp_path):
    keys = ["0", "1", "2", "9", "10", "0010", "100"]
    assert sorted(["b", "10", "a2", "a10", "9"], key=natural) == ["9", "10", "a2", "a10", "b"]
    for key in keys:
        np.save(tmp_path / f"img_emb_{key}.npy", np.zeros((1, 4), np.float16))
        pq.write_table(pa.table({"key": [key]}), tmp_path / f"metadata_{key}.parquet")
    found = discover(Source(tmp_path, tmp_path))
    assert found == ["0", "1", "2", "9", "0010", "10", "100"]
    for number in range(len(found)):
        np.save(tmp_path / "marks.npy", np.arange(len(found)) != number)
        apply_bitmap(tmp_path, tmp_path / "out", tmp_path / "marks.npy")
        tables = map(pq.read_table, (tmp_path / "out").glob("*.parquet"))
        assert [key for table in tables for key in table["key"].to_pylist()] == [found[number]]
