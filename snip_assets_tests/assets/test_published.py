"""The published assets in Dagster: a range of shards in one run, from a mirror."""

from __future__ import annotations

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.assets import published
from snip_assets.definitions import build_defs
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.resources import DataSet
from snip_assets_tests import mirror as faulty

OFFSETS = np.cumsum([0, *faulty.LENGTHS])


@pytest.mark.parametrize("footers", [True, False])
def test_the_job_over_a_range_of_shards(tmp_path, monkeypatch, footers):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bitmap = faulty.make(tmp_path / "served")
    sample = Source(faulty.SAMPLE / "img_emb", faulty.SAMPLE / "metadata")
    data = DataSet.of(sample, tmp_path / "out", Settings())
    with faulty.serving(tmp_path / "served") as mirror, dg.DagsterInstance.ephemeral() as instance:
        offsets = {"location": f"{mirror.url}/cum_sz.npy"}
        if footers:
            offsets = {"footers_of": f"{mirror.url}/metadata"}
        config = {
            "published_bitmap": {"config": {"location": f"{mirror.url}/is_dup.npy"}},
            "published_row_offsets": {"config": offsets},
            "published_deduped_metadata": {"config": {"metadata": f"{mirror.url}/metadata"}},
        }
        job = build_defs({"data": data}).resolve_job_def("published_dedup")
        result = job.execute_in_process(
            run_config={"ops": config},
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": "0004",
                "dagster/asset_partition_range_end": "0007",
            },
        )
    assert result.success
    written = sorted((tmp_path / "out" / "published" / "metadata").glob("*.parquet"))
    assert [p.name[9:13] for p in written] == ["0004", "0005", "0006", "0007"]
    for shard, path in zip(range(4, 8), written, strict=True):
        source = pq.read_table(tmp_path / "served" / "metadata" / path.name)
        drop = bitmap[OFFSETS[shard] : OFFSETS[shard + 1]]
        assert pq.read_table(path).equals(source.filter(pa.array(~drop)))


def test_neighbouring_shards_are_one_download():
    assert published._runs([7, 3, 4, 5, 0]) == [(0, 1), (3, 6), (7, 8)]
