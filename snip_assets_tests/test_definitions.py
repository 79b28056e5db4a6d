"""What Dagster's own commands make of the project."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqlEventLogStorageMetadata
from dagster._core.workspace.load_target import (
    ModuleTarget,
    PyProjectFileTarget,
    WorkspaceFileTarget,
)
from sqlalchemy.schema import CreateTable

from snip_assets import home, partitions
from snip_assets.definitions import build_defs
from snip_assets.engine.errors import BadInputError, DiskFullError, StaleOutputError
from snip_assets.engine.settings import Settings
from snip_assets.options import default_source
from snip_assets.resources import DataSet

ROOT = Path(__file__).parent.parent
ASSETS = {
    *("metadata", "clip_features", "snip_model", "snip_features", "trained_index"),
    *("index_shards", "snip_index", "duplicate_pairs", "duplicate_groups", "dup_bitmap"),
    *("kept_rows", "dropped_rows"),
    *("deduped_metadata", "drop_list", "dedup_report"),
}


def _dagster(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "SNIP"))}
    return subprocess.run(
        [sys.executable, "-m", "dagster", *arguments],
        cwd=folder,
        env=environment | {"PWD": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet.of(default_source({}), tmp_path / "out", Settings())


def test_every_asset_is_grouped_described_and_of_a_kind(data: DataSet) -> None:
    specs = {
        s.key.to_user_string(): s for s in build_defs({"data": data}).resolve_all_asset_specs()
    }
    assert set(specs) >= ASSETS
    for name in ASSETS:
        spec = specs[name]
        assert (
            spec.group_name != "default" and spec.description and spec.kinds and spec.code_version
        )


def test_a_backfill_of_some_shards_leaves_out_nothing_between_them(data: DataSet) -> None:
    graph = build_defs({"data": data}).resolve_asset_graph()
    for key in map(dg.AssetKey, ASSETS):
        # Dagster reaches what has shards through parents that have them.
        parents = [graph.get(parent) for parent in graph.get(key).parent_keys]
        if graph.get(key).is_partitioned and parents:
            assert any(parent.is_partitioned for parent in parents), key


def test_dagster_finds_no_fault(tmp_path: Path) -> None:
    shutil.copy(ROOT / "workspace.yaml", tmp_path)
    result = _dagster(tmp_path, "definitions", "validate", "-w", "workspace.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    said = (result.stdout + result.stderr).splitlines()
    # Dagster says of its own command that another one is newer.
    assert [s for s in said if "Warning" in s and "Supersession" not in s] == []


def test_all_ways_to_load_the_project_give_it_one_name() -> None:
    """Dagster keeps by it which sensors are on, and what runs are to be executed again by."""
    module = "snip_assets.definitions"
    files = ["workspace.yaml", "deploy/dagster/workspace.yaml", "deploy/systemd/workspace.yaml"]
    targets = (
        ModuleTarget(module, attribute=None, working_directory=None, location_name=None),
        PyProjectFileTarget(str(ROOT / "pyproject.toml")),
        WorkspaceFileTarget([str(ROOT / file) for file in files]),
    )
    names = {origin.location_name for target in targets for origin in target.create_origins()}
    assert names == {module}


def test_plain_dagster_works_in_the_project_after_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`snip shards sync` writes `.env`; then nothing must be exported."""
    from snip_assets import cli

    for name in ("workspace.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(sys, "argv", ["snip", "shards", "sync"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    arguments = (
        "-m",
        "snip_assets.definitions",
        "--select",
        "metadata",
        "--partition-range",
        "0001...0002",
    )
    result = _dagster(tmp_path, "asset", "materialize", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    made = {p.name for p in (tmp_path / "out/demo/metadata").glob("*.manifest.json")}
    assert {name.split(".")[0] for name in made} == {"0001", "0002"}

    readme = (ROOT / "README.md").read_text().splitlines()
    everything = next(line for line in readme if "'not group:published'" in line)
    result = _dagster(tmp_path, *shlex.split(everything)[1:])
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out/demo/dedup_report/index.html").exists()


@pytest.mark.parametrize(("first", "says"), [("", "choose partitions"), ("0001", "earlier key")])
def test_a_run_of_no_shard_says_so(data: DataSet, first: str, says: str) -> None:
    tags = {partitions.RANGE_START: first, partitions.RANGE_END: "0000"} if first else {}
    with dg.DagsterInstance.ephemeral() as instance:
        partitions.register(data.layout, data.source, limit=2)
        partitions.announce(instance, data.layout)
        job = build_defs({"data": data}).resolve_job_def("ingest")
        result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
    said = [e.step_failure_data.user_failure_data for e in result.get_step_failure_events()]
    assert said and all(says in str(failure and failure.description) for failure in said)


def test_shards_keep_the_order_of_their_ordinals(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert len(partitions.register(data.layout, data.source, limit=2)) == 2
        assert partitions.announce(instance, data.layout) == ["0000", "0001"]
        assert len(partitions.register(data.layout, data.source)) == 2
        assert partitions.announce(instance, data.layout) == ["0002", "0003"]
        assert partitions.register(data.layout, data.source) == []
        assert instance.get_dynamic_partitions("shards") == ["0000", "0001", "0002", "0003"]
        # As in the UI: what is added again comes last, and ranges would pass it over.
        instance.delete_dynamic_partition("shards", "0001")
        assert partitions.announce(instance, data.layout) == ["0001"]
        assert instance.get_dynamic_partitions("shards") == ["0000", "0001", "0002", "0003"]
        with pytest.raises(BadInputError, match="registered after it"):
            partitions.withdraw(instance, data.layout, ["0002"])
        assert [s.key for s in partitions.withdraw(instance, data.layout, ["0003"])] == ["0003"]
        assert instance.get_dynamic_partitions("shards") == ["0000", "0001", "0002"]
        assert partitions.announce(instance, data.layout) == []
        instance.add_dynamic_partitions("shards", ["other"])
        with pytest.raises(StaleOutputError, match=r"\(other\).*Delete it there.*another data set"):
            partitions.announce(instance, data.layout)


@pytest.mark.parametrize("made", [True, False])
def test_dagster_is_told_that_groups_and_bitmap_went_with_a_shard(
    data: DataSet, made: bool
) -> None:
    groups, bitmap = dg.AssetKey("duplicate_groups"), dg.AssetKey("dup_bitmap")
    check = dg.AssetCheckKey(bitmap, "bitmap_has_all_rows")
    assert check in build_defs().resolve_asset_graph().asset_check_keys
    with dg.DagsterInstance.ephemeral() as instance:
        partitions.register(data.layout, data.source)
        partitions.announce(instance, data.layout)
        if made:
            for key in (groups, bitmap):
                instance.report_runless_asset_event(dg.AssetMaterialization(key))
        partitions.withdraw(instance, data.layout, ["0003"])
        for key in (groups, bitmap):
            told = instance.fetch_observations(key, limit=5).records
            said = [
                str(one.asset_observation and one.asset_observation.description) for one in told
            ]
            assert len(said) == made and all("withdrawn (0003)" in text for text in said)
            # History stays.
            assert bool(instance.get_latest_materialization_event(key)) is made
        storage = instance.event_log_storage
        found = storage.get_latest_asset_check_execution_by_key([check]).get(check)
        event = found.event.dagster_event if found and found.event else None
        assert (event is not None) is made
        assert event is None or not event.asset_check_evaluation_data.passed


@pytest.mark.parametrize("made", [0, 3])
def test_records_whose_making_was_stopped_are_made_whole(data: DataSet, made: int) -> None:
    partitions.register(data.layout, data.source)
    # What a full disk, or a kill, at the first start leaves of this file.
    index = home.prepare(data.layout) / "history" / "runs" / "index.db"
    index.parent.mkdir(parents=True)
    with sqlite3.connect(index) as connection:
        for table in SqlEventLogStorageMetadata.sorted_tables[:made]:
            connection.execute(str(CreateTable(table)))
    with home.instance(data.layout) as instance:
        assert partitions.announce(instance, data.layout) == ["0000", "0001", "0002", "0003"]


def test_no_room_for_records_is_told(data: DataSet) -> None:
    with (
        pytest.raises(DiskFullError, match=r"\.dagster: no space left for Dagster's records. Free"),
        home.instance(data.layout),
        sqlite3.connect(":memory:") as connection,
    ):
        connection.execute("PRAGMA max_page_count = 1")
        connection.execute("CREATE TABLE events (id)")
