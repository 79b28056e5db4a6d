"""The whole graph on the built-in sample, against brute force."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.events import EngineEventData
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from snip_assets import dead_runs, graph, home, partitions, versions
from snip_assets.engine import stations
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Registry, Source, load
from snip_assets.engine.storage.files import manifest_path, read_manifest, seal
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA
from snip_assets.report import plots
from snip_assets.resources import DataSet

MAX_DISTANCE = Settings().max_distance
# float32 sums in the engine, float64 here.
ROUNDING = 1e-5


class Run:
    """One run of the graph and the truth about its data."""

    def __init__(self, out: Path) -> None:
        self.data = DataSet.of(Source(SAMPLE_FEATURES, SAMPLE_METADATA), out, Settings())
        self.layout = self.data.layout
        self.outcome = graph.materialize(self.data)
        self.registry: Registry = load(self.layout)
        raw = np.concatenate([np.load(s.features) for s in self.registry.shards])
        unit = raw.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        self.distance = 2 - 2 * unit @ unit.T
        _, index, where = np.unique(raw, axis=0, return_index=True, return_inverse=True)
        self.first_copy = index[where.ravel()]

    @property
    def pairs(self) -> np.ndarray:
        """The pairs that were found: row, earlier_row."""
        tables = [pq.read_table(self.layout.duplicate_pairs(k)) for k in self.registry.keys]
        columns = [np.concatenate([t[c] for t in tables]) for c in ("row", "earlier_row")]
        return np.stack(columns, 1).astype(np.int64)

    @property
    def drop(self) -> np.ndarray:
        """The bitmap."""
        return np.load(self.layout.dup_bitmap / "dup_bitmap.npy")


@pytest.fixture(scope="module", autouse=True)
def _no_dagster_home() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("graph") / "out")


def test_all_checks_pass(run: Run) -> None:
    assert len(run.outcome.checks) >= 9
    assert {name for name, check in run.outcome.checks.items() if not check["passed"]} == set()


def test_pairs_are_those_of_exact_search(run: Run) -> None:
    row, earlier = np.nonzero(np.tril(run.distance <= MAX_DISTANCE, -1))
    is_first = run.first_copy == np.arange(len(run.first_copy))
    between = is_first[row] & is_first[earlier]
    true = {(int(a), int(b)) for a, b in zip(row[between], earlier[between], strict=True)}
    copies = {(int(a), int(run.first_copy[a])) for a in np.flatnonzero(~is_first)}
    found = [tuple(map(int, pair)) for pair in run.pairs]

    assert len(set(found)) == len(found)
    assert copies <= set(found)
    assert len(true & set(found)) >= 0.99 * len(true)
    wrong = set(found) - copies - true
    assert all(run.distance[pair] <= MAX_DISTANCE + ROUNDING for pair in wrong)


def test_groups_are_the_connected_components(run: Run) -> None:
    n, pairs = run.registry.rows, run.pairs
    matrix = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
    _, component = connected_components(matrix, directed=False)
    smallest = np.full(component.max() + 1, n)
    np.minimum.at(smallest, component, np.arange(n))
    labels = np.load(run.layout.duplicate_groups / "labels.npy")
    np.testing.assert_array_equal(labels, smallest[component])


def test_every_dropped_row_resembles_a_kept_one(run: Run) -> None:
    drop = run.drop
    assert len(drop) == run.registry.rows
    assert 0 < drop.sum() < len(drop)
    nearest_kept = run.distance[drop][:, ~drop].min(1)
    assert nearest_kept.max() <= MAX_DISTANCE + ROUNDING


def test_cleaned_metadata_is_the_kept_rows_and_nothing_else(run: Run) -> None:
    drop = run.drop
    for shard in run.registry.shards:
        source = pq.read_table(shard.metadata)
        cleaned = pq.read_table(run.layout.deduped_metadata(shard.key))
        kept = ~drop[shard.start : shard.stop]
        assert cleaned.schema.equals(source.schema)
        assert cleaned.equals(source.filter(kept))
        dropped = pq.read_table(run.layout.drop_list(shard.key))
        assert len(dropped) + len(cleaned) == shard.rows


def test_dagster_is_told_rows_and_storage_by_its_own_names(run: Run) -> None:
    def told(asset: str, partition: str | None = None) -> dict[str, Any]:
        of = dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition else None
        )
        (record,) = instance.fetch_materializations(of, limit=1).records
        assert record.asset_materialization
        return {name: m.value for name, m in record.asset_materialization.metadata.items()}

    with home.instance(run.layout) as instance:
        for asset in ("snip_index", "dup_bitmap", "dedup_report"):
            manifest = read_manifest(run.layout.root / asset)
            assert manifest and told(asset)["dagster/size_bytes"] == manifest.bytes
            assert told(asset)["dagster/row_count"] == run.registry.rows
        # The page of an asset takes these for the whole of it.
        shard = run.registry.shards[0]
        found, manifest = told("metadata", shard.key), read_manifest(run.layout.metadata(shard.key))
        assert not {"dagster/size_bytes", "dagster/row_count"} & {*found}
        assert manifest and found["bytes"] == manifest.bytes
        assert found["dagster/partition_row_count"] == shard.rows
        drop = np.load(run.layout.dup_bitmap / "dup_bitmap.npy")[shard.start : shard.stop]
        assert told("kept_rows", shard.key)["dagster/partition_row_count"] == (~drop).sum()
        assert told("dropped_rows", shard.key)["dagster/partition_row_count"] == drop.sum()


def test_a_second_run_changes_nothing(run: Run) -> None:
    def state() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in run.layout.root.rglob("*")
            if path.is_file() and run.layout.dagster_home not in path.parents
        }

    before = state()
    assert graph.materialize(run.data).new == []
    assert state() == before


def test_what_is_lost_or_changed_is_unfinished(run: Run, tmp_path: Path) -> None:
    layout, keys = Layout(tmp_path / "out"), run.registry.keys
    shutil.copytree(run.layout.root, layout.root)

    def left(**changes: Any) -> list[str]:
        return stations.unfinished(stations.Run(layout, replace(Settings(), **changes)))

    assert left() == []
    assert left(max_partners=7) == left(codec="PQ16") == left(seed=1) == keys
    manifest_path(layout.duplicate_pairs(keys[0])).unlink()
    assert left() == keys[:1]
    # The pairs of a shard are made from all before it.
    manifest_path(layout.snip_features(keys[2])).unlink()
    assert left() == [*keys[:1], *keys[2:]]


def _copy(run: Run, tmp_path: Path) -> DataSet:
    data = DataSet.of(run.data.source, tmp_path / "out", Settings())
    shutil.copytree(run.layout.root, data.layout.root)
    return data


def test_a_killed_run_keeps_no_other_waiting(run: Run, tmp_path: Path) -> None:
    data = _copy(run, tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with home.instance(data.layout) as instance:
        tags = {dead_runs.MACHINE_TAG: dead_runs.machine()}
        dead = dg.DagsterRun(job_name="arrival", status=dg.DagsterRunStatus.STARTED, tags=tags)
        instance.add_run(dead)
        told = EngineEventData({"pid": dg.MetadataValue.text(str(gone.pid))})
        instance.report_engine_event("Executing steps", dead, told)
        instance.event_log_storage.claim_concurrency_slot("memory", dead.run_id, "trained_index")
    manifest_path(data.layout.duplicate_pairs(run.registry.keys[3])).unlink()
    assert graph.materialize(data).checks["pair_precision"]["passed"]


def test_a_blocking_check_that_fails_says_what_it_found(run: Run, tmp_path: Path) -> None:
    data = _copy(run, tmp_path)
    key = run.registry.keys[3]
    path = data.layout.duplicate_pairs(key)
    pairs = pq.read_table(path)
    wrong = pairs.set_column(1, "earlier_row", pa.array(np.zeros(len(pairs)), pa.uint64()))
    pq.write_table(wrong, path)
    manifest = read_manifest(path)
    assert manifest is not None
    seal(path, manifest.inputs, **manifest.facts)
    with pytest.raises(graph.FailedCheckError, match=r"pair_precision of duplicate_pairs .*apart"):
        graph.materialize(data)


@pytest.mark.parametrize("tier", ["snip", "codes"])
def test_tiers_without_raw_features_end_and_stop_nothing(
    run: Run, tmp_path: Path, tier: str
) -> None:
    data = DataSet.of(run.data.source, tmp_path / "out", Settings(tier=tier))
    shutil.copytree(run.layout.root, data.layout.root)
    checks = graph.materialize(data).checks
    assert checks["pair_precision"]["estimate"] < 1
    assert all(checks[name]["passed"] for name in ("pair_precision", "query_recall", "no_orphans"))


def test_pictures_of_what_stays_are_taken_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, of_facts = [], plots.of_facts
    monkeypatch.setattr(plots, "of_facts", lambda facts: drawn.append(facts) or of_facts(facts))
    graph.materialize(run.data)
    with home.instance(run.layout) as instance:
        last = instance.fetch_materializations(dg.AssetKey("trained_index"), limit=2).records
    one, other = (record.event_log_entry.asset_materialization.metadata for record in last)
    assert plots.is_picture(one["recall_curve"].value)
    assert one == other
    assert not any(facts.get("curve") for facts in drawn)


def test_what_dagster_does_not_know_is_recorded_again(run: Run, tmp_path: Path) -> None:
    data = _copy(run, tmp_path)
    shutil.rmtree(data.layout.dagster_home)
    with home.instance(data.layout) as instance:
        partitions.announce(instance, data.layout)
        assert versions.unrecorded(instance, data) == set(run.registry.keys)
        graph.materialize(data)
        assert versions.unrecorded(instance, data) == set()
        # As in the UI; its files are all there.
        instance.wipe_assets([dg.AssetKey("deduped_metadata")])
        graph.materialize(data)
        assert versions.unpublished(instance, run.registry.keys) == set()


def test_errors_that_name_each_other_end_the_search_for_the_engines_own() -> None:
    first, second, own = RuntimeError("first"), RuntimeError("second"), BadInputError("own")
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(RuntimeError, match="first"), graph._engine_errors():
        raise first
    second.__cause__ = own
    with pytest.raises(BadInputError, match="own"), graph._engine_errors():
        raise first
