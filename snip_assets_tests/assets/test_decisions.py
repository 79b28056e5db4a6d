"""A shard arrives: what becomes stale in Dagster is what is written anew, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from snip_assets import automation, graph, home, sensors
from snip_assets.definitions import build_defs
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, load
from snip_assets.engine.storage.files import manifest_path
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA
from snip_assets.resources import DataSet

ROWS = 30
UP_TO_THE_BITMAP = ("snip_features", "trained_index", *automation.DEDUP[1:])
OUTPUTS = ("deduped_metadata", "drop_list")


def _put(source: Source, key: str, rows: list[int], width: int) -> None:
    """Write a shard of rows of the sample's first shard, with images of this width."""
    features = np.load(SAMPLE_FEATURES / "img_emb_0000.npy")[rows]
    table = pq.read_table(SAMPLE_METADATA / "metadata_0000.parquet").take(rows)
    place = table.schema.get_field_index("original_width")
    widths = np.full(len(rows), width, table.schema.field(place).type.to_pandas_dtype())
    np.save(source.features / f"img_emb_{key}.npy", features)
    pq.write_table(
        table.set_column(place, "original_width", [widths]),
        source.metadata / f"metadata_{key}.parquet",
    )


def _unlike(count: int) -> list[int]:
    """Rows of the sample of which no two are near each other."""
    raw = np.load(SAMPLE_FEATURES / "img_emb_0000.npy").astype(np.float32)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    found: list[int] = []
    for row in range(len(raw)):
        if not found or (raw[found] @ raw[row]).max() < 0.8:
            found.append(row)
    return found[:count]


def _not_fresh(data: DataSet) -> set[tuple[str, str]]:
    """Partitions that Dagster calls stale or missing."""
    assets = build_defs({"data": data}).resolve_asset_graph()
    with home.instance(data.layout) as instance:
        resolver = CachingStaleStatusResolver(instance, assets, LoadingContextForTest(instance))
        return {
            (key.to_user_string(), shard)
            for key in assets.materializable_asset_keys
            if assets.get(key).is_partitioned and assets.get(key).group_name != "published"
            for shard in instance.get_dynamic_partitions("shards")
            if resolver.get_status(key, shard) != StaleStatus.FRESH
        }


def _execute(data: DataSet, job: str, assets: tuple[str, ...], *keys: str) -> None:
    with home.instance(data.layout) as instance:
        build_defs({"data": data}).resolve_job_def(job).execute_in_process(
            instance=instance,
            tags=automation.shard_range(data.layout, list(keys) or load(data.layout).keys),
            asset_selection=[dg.AssetKey(a) for a in assets],
        )


def _outputs(data: DataSet) -> dict[tuple[str, str], bytes]:
    return {
        (name, path.stem.removeprefix("metadata_")): path.read_bytes()
        for name in OUTPUTS
        for path in (data.layout.root / name).glob("*.parquet")
    }


CHANGED = {("deduped_metadata", "b"), ("drop_list", "b"), ("drop_list", "c")}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Shards a, b and c. What `_arrive` adds changes the outputs `CHANGED`."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    source = Source(tmp_path / "img_emb", tmp_path / "metadata")
    for folder in (source.features, source.metadata):
        folder.mkdir()
    rows = _unlike(3 * ROWS)
    first, second, third = rows[:ROWS], rows[ROWS : 2 * ROWS], rows[2 * ROWS :]
    _put(source, "a", first, 100)
    _put(source, "b", second, 200)
    # Its last row goes for the wider one in b.
    _put(source, "c", [*third, second[7]], 100)
    return DataSet.of(source, tmp_path / "out", Settings(keep="largest(original_width)"))


def _arrive(data: DataSet) -> None:
    # Wider still: b's row goes too, and c's is explained by another one; a has no part in it.
    _put(data.source, "d", [_unlike(2 * ROWS)[ROWS + 7]], 300)


def test_only_what_a_new_shard_changes_is_stale(data: DataSet) -> None:
    graph.sync(data)
    _execute(data, "arrival", (*automation.INGEST, "snip_model", *UP_TO_THE_BITMAP, *OUTPUTS))
    assert _not_fresh(data) == set()
    before = _outputs(data)
    pairs = {key: data.layout.duplicate_pairs(key).stat().st_mtime_ns for key in "abc"}

    _arrive(data)
    assert [s.key for s in graph.sync(data)] == ["d"]
    untrained = [a for a in UP_TO_THE_BITMAP if a != "trained_index"]
    _execute(data, "arrival", (*automation.INGEST, *untrained), "d")
    new = {(name, "d") for name in OUTPUTS}
    assert _not_fresh(data) == CHANGED | new
    assert sensors._publishable(data) == [["b", "c", "d"]]

    _execute(data, "publish", OUTPUTS)
    assert _not_fresh(data) == set()
    after = _outputs(data)
    assert {place for place in before if before[place] != after[place]} == CHANGED
    assert after.keys() - before.keys() == new
    # There is no report yet.
    assert sensors._publishable(data) == [["d"]]
    assert pairs == {key: data.layout.duplicate_pairs(key).stat().st_mtime_ns for key in "abc"}


def test_runs_are_about_the_shards_that_something_changes_for(data: DataSet) -> None:
    def runs(count: int) -> list[tuple[str, ...]]:
        with home.instance(data.layout) as instance:
            found = [record.dagster_run for record in instance.get_run_records(limit=count)]
        ends = (automation.RANGE_START, automation.RANGE_END)
        return [(run.job_name, *(run.tags[end] for end in ends)) for run in reversed(found)]

    checked = graph.materialize(data).checks.keys()
    assert runs(9) == [("arrival", "a", "c")]
    before = _outputs(data)
    _arrive(data)
    # Nothing that goes over all outputs again.
    assert graph.materialize(data).checks.keys() == checked and "checksums" not in checked
    assert runs(2) == [("arrival", "d", "d"), ("publish", "b", "d")]
    assert _not_fresh(data) == set()
    after = _outputs(data)
    assert {place for place in before if before[place] != after[place]} == CHANGED
    assert sensors._publishable(data) == []


def arrival_of_environment() -> dg.JobDefinition:
    return build_defs().resolve_job_def("arrival")


def test_features_that_changed_are_refused_unless_their_pairs_are_made_again(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.materialize(data)
    path = data.source.features / "img_emb_b.npy"
    former, times = np.load(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    def ingest() -> dg.ExecuteInProcessResult:
        with home.instance(data.layout) as instance:
            job = build_defs({"data": data}).resolve_job_def("ingest")
            tags = automation.shard_range(data.layout, ["b"])
            return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)

    np.save(path, former[::-1])
    result = ingest()
    assert not result.success
    said = [str(e.event_specific_data) for e in result.all_events if e.is_step_failure]
    assert any("img_emb_b.npy: has other rows than when shard b was read" in text for text in said)
    with home.instance(data.layout) as instance:
        (whole,) = instance.get_run_records(dg.RunsFilter(job_name="arrival"))
        step = dg.ReexecutionOptions(whole.dagster_run.run_id, ["clip_features"])
        job = dg.reconstructable(arrival_of_environment)
        monkeypatch.setenv("SNIP_OUT", str(data.layout.root))
        monkeypatch.setenv("SNIP_FEATURES", str(data.source.features))
        monkeypatch.setenv("SNIP_METADATA", str(data.source.metadata))
        tags = automation.shard_range(data.layout, ["b"])
        with dg.execute_job(job, instance, tags=tags, reexecution_options=step) as again:
            failed = [str(e.event_specific_data) for e in again.all_events if e.is_step_failure]
            assert failed and "has other rows than when" in failed[0]
    np.save(path, former)
    os.utime(path, ns=times)
    assert ingest().success
    os.utime(path)
    assert ingest().success
    np.save(path, former[::-1])
    assert graph.materialize(data).checks["pair_precision"]["estimate"] == 1.0


def test_a_shard_without_metadata_does_not_keep_others_from_being_published(data: DataSet) -> None:
    graph.materialize(data)
    for key in "ac":
        manifest_path(data.layout.drop_list(key)).unlink()
    (data.source.metadata / "metadata_a.parquet").unlink()
    assert sensors._publishable(data) == [["c"]]


def test_a_check_on_damaged_pairs_fails_and_names_them(data: DataSet) -> None:
    graph.materialize(data)
    pairs = data.layout.duplicate_pairs("b")
    os.truncate(pairs, pairs.stat().st_size // 2)
    with home.instance(data.layout) as instance:
        job = build_defs({"data": data}).resolve_job_def("verify")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    for name in ("pair_precision", "query_recall"):
        assert not found[name].passed
        assert f"{pairs}: " in str(found[name].description)
        assert "materialise duplicate_pairs b again" in str(found[name].description)
