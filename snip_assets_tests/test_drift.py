"""An index trained on rows of one kind, and shards of another kind that arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets import graph, home
from snip_assets.definitions import build_defs
from snip_assets.engine import choices, drift, evidence, shards, stations
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.withdraw import withdraw
from snip_assets.options import default_source
from snip_assets.resources import Audit, DataSet

BY_SHARD = ("metadata", "clip_features", "snip_features", "index_shards")


class Kinds:
    """The sample, ordered by its first principal axis: its two ends are of different kinds."""

    def __init__(self, folder: Path) -> None:
        self.source = Source(folder / "img_emb", folder / "metadata")
        for path in (self.source.features, self.source.metadata):
            path.mkdir()
        self.data = DataSet.of(self.source, folder / "out", Settings())
        sample = default_source({})
        keys = shards.discover(sample)
        self.raw = np.concatenate([np.load(sample.features / f"img_emb_{k}.npy") for k in keys])
        tables = [pq.read_table(sample.metadata / f"metadata_{k}.parquet") for k in keys]
        self.described = pa.concat_tables(tables)
        wide = self.raw.astype(np.float64) - self.raw.mean(0, dtype=np.float64)
        self.order = np.argsort(wide @ np.linalg.eigh(wide.T @ wide)[1][:, -1], kind="stable")

    def put(self, key: str, rows: np.ndarray) -> None:
        np.save(self.source.features / f"img_emb_{key}.npy", self.raw[rows])
        pq.write_table(self.described.take(rows), self.source.metadata / f"metadata_{key}.parquet")

    def ingest(self) -> None:
        """Up to the groups, as an arrival does; net and index are kept once they are there."""
        shards.register(self.data.layout, self.source)
        run = self.data.run()
        keys = run.registry.keys
        for name in ("metadata", "clip_features", "snip_model", "snip_features", "trained_index"):
            work = getattr(stations, name)
            work(run, keys) if name in BY_SHARD else work(run)
        stations.index_shards(run, keys)
        stations.snip_index(run)
        stations.duplicate_pairs(run, keys)
        stations.duplicate_groups(run)

    def nightly(self, **bounds: float) -> dg.AssetCheckEvaluation:
        """The check's result in the job `verify`."""
        resources: dict[str, Any] = {"data": self.data, "verifying": Audit(**bounds)}
        with home.instance(self.data.layout) as instance:
            result = (
                build_defs(resources)
                .resolve_job_def("verify")
                .execute_in_process(instance=instance, op_selection=["duplicate_pairs_drift"])
            )
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation


@pytest.fixture
def kinds(tmp_path: Path) -> Kinds:
    return Kinds(tmp_path)


def test_rows_of_another_kind_ask_for_training_again_which_cures(
    kinds: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with many rows: of so few, hardly a pair is lost, whatever comes.
    for module, name, value in (
        (choices, "PROBES", 0),
        (choices, "SPARED", 1.0),
        (evidence, "FEWEST_PAIRS", 50),
    ):
        monkeypatch.setattr(module, name, value)
    kinds.put("0000", kinds.order[:300])
    kinds.ingest()
    assert drift.measure(kinds.data.run(), 400, 1).fresh_rows == 0
    for number, rows in enumerate(np.array_split(kinds.order[-600:], 2), 1):
        kinds.put(f"{number:04d}", rows)
    kinds.ingest()
    told = kinds.nightly()
    assert not told.passed and told.severity is dg.AssetCheckSeverity.WARN
    said = str(told.description)
    assert "below 0.995" in said and "times the rows" not in said
    assert "times the quantisation error (code_error_warn 2)" in said
    assert "quantisation" not in str(kinds.nightly(code_error_warn=1e6).description)
    assert f"`snip dedup --train-again --features {kinds.source.features}" in said
    assert "times the rows" in str(kinds.nightly(growth_warn=2.5).description)

    cured = graph.materialize(kinds.data, train_again=True).checks
    assert cured["drift"]["passed"] and cured["drift"]["trained_rows"] == 900
    assert cured["drift"]["code_error"] == 1
    assert cured["query_recall"]["estimate"] > 0.995


def test_rows_of_the_same_kind_are_no_drift(kinds: Kinds) -> None:
    mixed = np.random.default_rng(0).permutation(kinds.order)
    kinds.put("0000", mixed[:1200])
    kinds.ingest()
    kinds.put("0001", mixed[1200:])
    kinds.ingest()
    found = drift.measure(kinds.data.run(), 400, 1)
    assert (found.trained_rows, found.fresh_rows) == (1200, 800)
    assert found.recall.high >= found.target and found.growth < 2
    # All of the kind, but those that were trained on fit better.
    assert 1 < found.code_error < Audit().code_error_warn


def test_rows_that_were_replaced_under_their_key_came_later(kinds: Kinds) -> None:
    for key, rows in (("0000", kinds.order[:300]), ("0001", kinds.order[300:700])):
        kinds.put(key, rows)
    kinds.ingest()
    withdraw(kinds.data.layout, ["0001"])
    kinds.put("0001", kinds.order[-400:])
    kinds.ingest()
    found = drift.measure(kinds.data.run(), 400, 1)
    assert (found.trained_rows, found.fresh_rows) == (300, 400)
