"""Sensors as Dagster sees them, mostly without running a station."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from snip_assets import automation, partitions, sensors
from snip_assets.definitions import build_defs
from snip_assets.engine import stations
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, load, register
from snip_assets.engine.storage.remote_files import as_path
from snip_assets.options import default_source
from snip_assets.resources import DataSet, Watch

from .engine.station_tools import until_pairs


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    source = Source(tmp_path / "img_emb", tmp_path / "metadata")
    for path in (source.features, source.metadata):
        path.mkdir()
    return DataSet.of(source, tmp_path / "out", Settings())


def put(data: DataSet, *keys: str) -> None:
    sample = default_source({})
    for key in keys:
        shutil.copy(sample.features / f"img_emb_{key}.npy", data.features)
        shutil.copy(sample.metadata / f"metadata_{key}.parquet", data.metadata)


class Ticks:
    def __init__(self, instance: dg.DagsterInstance, data: DataSet, most: int = 500) -> None:
        self.instance, self.data, self.cursor = instance, data, None
        self.watch = Watch(most=most)
        self.defs = build_defs({"data": data})

    def __call__(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            self.instance,
            cursor=self.cursor,
            resources={"data": self.data, "watch": self.watch},
            definitions=self.defs,
        )
        result = sensors.new_shards(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result


def test_a_burst_is_one_run_up_to_the_bitmap(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        assert not tick().run_requests
        put(data, "0000", "0001", "0002")
        assert not tick().run_requests
        (request,) = tick().run_requests or []
        assert request.tags[automation.RANGE_START] == "0000"
        assert request.tags[automation.RANGE_END] == "0002"
        assert {k.to_user_string() for k in request.asset_selection or []} == {
            *automation.INGEST,
            *automation.TRAIN,
            *automation.DEDUP,
        }
        assert instance.get_dynamic_partitions("shards") == ["0000", "0001", "0002"]
        # Until the run has begun, the same request again: Dagster drops it by its run key.
        (again,) = tick().run_requests or []
        assert again.run_key == request.run_key


def test_complete_shards_wait_for_those_that_grow(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        put(data, "0000")
        tick()
        put(data, "0001")
        assert "still growing" in str(tick().skip_reason)
        (request,) = tick().run_requests or []
        assert request.tags[automation.RANGE_END] == "0001"


def test_registered_shards_wait_for_those_that_the_next_look_registers(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data, most=1)
        put(data, "0000", "0001")
        tick()
        assert tick().run_requests == []
        assert [s.key for s in load(data.layout).shards] == ["0000"]
        (request,) = tick().run_requests or []
        assert request.tags[automation.RANGE_START] == "0000"
        assert request.tags[automation.RANGE_END] == "0001"


def test_an_arrival_trains_nothing_again(data: DataSet) -> None:
    put(data, "0000")
    register(data.layout, data.source)
    run = data.run()
    stations.clip_features(run, ["0000"])
    stations.snip_model(run)
    stations.snip_features(run, ["0000"])
    stations.trained_index(run)
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        put(data, "0001")
        tick()
        (request,) = tick().run_requests or []
        assert request.tags[automation.RANGE_END] == "0001"
        assert {k.to_user_string() for k in request.asset_selection or []} == {
            *automation.INGEST,
            *automation.DEDUP,
        }


def test_a_shard_that_is_read_late_takes_along_those_after_it(data: DataSet) -> None:
    put(data, "0000", "0001", "0002", "0003")
    register(data.layout, data.source)
    run, read = data.run(), ["0000", "0002", "0003"]
    until_pairs(run, keys=read)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = Ticks(instance, data)().run_requests or []
    assert request.tags[automation.RANGE_START] == "0001"
    # Their pairs lack the rows of 0001 once it is encoded.
    assert request.tags[automation.RANGE_END] == "0003"


def test_a_run_that_ended_between_pairs_and_bitmap_is_asked_for_again(data: DataSet) -> None:
    put(data, "0000", "0001")
    register(data.layout, data.source, ["0000"])
    run = data.run()
    stations.metadata(run, ["0000"])
    until_pairs(run)
    stations.duplicate_groups(run)
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)

        def asked() -> list[str]:
            return [r.tags[automation.RANGE_START] for r in tick().run_requests or []]

        tick()
        assert asked() == ["0000"]
        stations.dup_bitmap(run)
        assert asked() == ["0001"]
        run = data.run()
        until_pairs(run)
        assert asked() == ["0001"]
        stations.duplicate_groups(run)
        stations.dup_bitmap(run)
        assert asked() == []


def test_shards_that_failed_for_another_are_asked_for_when_that_is_back(data: DataSet) -> None:
    put(data, "0000")
    register(data.layout, data.source)
    run = data.run()
    stations.metadata(run, ["0000"])
    until_pairs(run)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    metadata = Path(data.metadata) / "metadata_0000.parquet"
    away = metadata.rename(metadata.with_suffix(".away"))
    put(data, "0001")
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)

        def fails() -> bool:
            for request in tick().run_requests or []:
                failed, tags = dg.DagsterRunStatus.FAILURE, {sensors.RUN_KEY: str(request.run_key)}
                instance.add_run(dg.DagsterRun(job_name="arrival", status=failed, tags=tags))
                return True
            return False

        # Once: it cannot succeed as things are.
        assert [fails() for _ in range(4)] == [False, True, False, False]
        assert "to do once 1 shard (0000) is in order" in str(tick().skip_reason)
        away.rename(metadata)
        assert [fails() for _ in range(4)] == [True, True, True, False]


def test_a_refused_shard_in_the_first_data_set_makes_runs_that_follow_each_other(
    data: DataSet,
) -> None:
    put(data, "0000", "0001", "0002", "0003")
    register(data.layout, data.source)
    raw = np.load(Path(data.features) / "img_emb_0001.npy")
    raw[7] = np.nan
    np.save(Path(data.features) / "img_emb_0001.npy", raw)
    run = data.run()
    with pytest.raises(BadInputError):
        stations.clip_features(run, run.registry.keys)
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)

        def launch(work: Callable[[list[str], bool], None]) -> tuple[str, str, bool]:
            """Shards that were asked for, and whether up to the bitmap."""
            (request,) = tick().run_requests or []
            again = tick().run_requests or []
            assert [request.run_key] == [r.run_key for r in again]
            chosen = {k.to_user_string() for k in request.asset_selection or []}
            ends = request.tags[automation.RANGE_START], request.tags[automation.RANGE_END]
            keys = [key for key in run.registry.keys if ends[0] <= key <= ends[1]]
            status = dg.DagsterRunStatus.SUCCESS
            try:
                work(keys, "duplicate_pairs" in chosen)
            except BadInputError:
                status = dg.DagsterRunStatus.FAILURE
            tags = {sensors.RUN_KEY: str(request.run_key)}
            instance.add_run(dg.DagsterRun(job_name="arrival", status=status, tags=tags))
            return (*ends, "duplicate_pairs" in chosen)

        def fail(_: list[str], whole: bool) -> None:
            raise BadInputError("refused")

        def work(keys: list[str], whole: bool) -> None:
            stations.snip_model(run)
            stations.snip_features(run, keys)
            if whole:
                until_pairs(run, keys=keys)
                stations.duplicate_groups(run)
                stations.dup_bitmap(run)

        assert launch(fail) == ("0000", "0003", True)
        # The index is trained on the SNIP features of all that were read.
        assert launch(fail) == ("0002", "0003", False)
        assert launch(work) == ("0002", "0003", False)
        assert launch(work) == ("0000", "0000", True)
        assert launch(work) == ("0002", "0003", True)


def test_what_was_withdrawn_and_is_back_is_asked_for_and_published_anew(data: DataSet) -> None:
    put(data, "0000", "0001")
    register(data.layout, data.source)
    with dg.DagsterInstance.ephemeral() as instance:
        tick, cursor = Ticks(instance, data), None

        def succeeds(request: dg.RunRequest) -> None:
            done, tags = dg.DagsterRunStatus.SUCCESS, {sensors.RUN_KEY: str(request.run_key)}
            instance.add_run(dg.DagsterRun(job_name="arrival", status=done, tags=tags))

        def decided() -> None:
            (request,), run = tick().run_requests or [], data.run()
            stations.metadata(run, run.registry.keys)
            until_pairs(run)
            stations.duplicate_groups(run)
            stations.dup_bitmap(run)
            succeeds(request)

        def published() -> str:
            nonlocal cursor
            found = sensors.clean_output(
                dg.build_sensor_context(
                    instance, cursor, resources={"data": data}, definitions=tick.defs
                )
            )
            if isinstance(found, dg.SkipReason):
                return str(found.skip_message)
            for request in found.run_requests or []:
                run = data.run()
                stations.deduped_metadata(run, run.registry.keys)
                stations.drop_list(run, run.registry.keys)
                succeeds(request)
            cursor = found.cursor or cursor
            return str(getattr(found.skip_reason, "skip_message", None))

        assert "no bitmap" in published()
        for _ in range(2):
            decided()
            assert published() == "None"
            # One more may be for the report, which these stations do not write.
            assert "Published." in (published(), published())
            assert published() == "The bitmap has not changed."
            assert data.layout.drop_list("0001").exists()
            partitions.withdraw(instance, data.layout, ["0001"])
            assert not data.layout.drop_list("0001").exists() and "no bitmap" in published()
            register(data.layout, data.source)


def test_planned_runs_are_given_up_when_a_shard_of_theirs_is_withdrawn(data: DataSet) -> None:
    put(data, "0000", "0001")
    register(data.layout, data.source)
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        planned = [("some", ["0001", "0002"], False), ("some-1", ["0000"], False)]
        tick.cursor = sensors.Memory(planned=planned).to_json()
        (request,) = tick().run_requests or []
        assert request.tags[automation.RANGE_END] == "0001"
        assert sensors.Memory.parse(tick.cursor).planned == []


def test_a_malformed_shard_is_reported_once_as_a_failed_check(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        put(data, "0000", "0001")
        (Path(data.features) / "img_emb_0001.npy").write_bytes(b"<html>")
        tick()
        result = tick()
        (event,) = result.asset_events
        assert isinstance(event, dg.AssetCheckEvaluation)
        assert not event.passed and "HTML" in str(event.description)
        (request,) = result.run_requests or []
        assert request.tags[automation.RANGE_END] == "0000"
        assert tick().asset_events == []
        # A run that reads the others makes Dagster take the check as not evaluated.
        read = dg.AssetMaterialization("metadata", partition="0000")
        instance.report_runless_asset_event(read)
        (again,) = tick().asset_events
        assert again == event and tick().asset_events == []
        put(data, "0001")
        (event,) = tick().asset_events
        assert isinstance(event, dg.AssetCheckEvaluation) and event.passed


def test_a_source_that_cannot_be_read_changes_nothing(data: DataSet) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Ticks(instance, data)
        put(data, "0000")
        tick()
        before = tick.cursor
        shutil.rmtree(data.features)
        result = tick()
        assert "cannot be listed" in str(result.skip_reason)
        assert sensors.Memory.parse(tick.cursor).waiting == sensors.Memory.parse(before).waiting


def test_a_url_is_watched_as_a_folder_is(tmp_path: Path) -> None:
    source = Source(as_path("memory://watched/img_emb"), as_path("memory://watched/metadata"))
    sample = default_source({})
    data = DataSet.of(source, tmp_path / "out", Settings())

    def upload(key: str, whole: bool = True) -> None:
        for folder, to in ((sample.features, source.features), (sample.metadata, source.metadata)):
            (path,) = folder.glob(f"*_{key}.*")
            (to / path.name).write_bytes(path.read_bytes()[: None if whole else 1000])

    try:
        with dg.DagsterInstance.ephemeral() as instance:
            tick = Ticks(instance, data)
            assert "no such file" in str(tick().skip_reason)
            upload("0000", whole=False)
            (source.features / "img_emb_0001.npy.part").write_bytes(b"1")
            assert not tick().run_requests
            upload("0000")
            assert not tick().run_requests
            (request,) = tick().run_requests or []
            assert request.tags[automation.RANGE_END] == "0000"
            run = data.run()
            stations.metadata(run, ["0000"])
            stations.clip_features(run, ["0000"])
            assert tick().asset_events == []
            upload("0000")
            (event,) = tick().asset_events
            assert isinstance(event, dg.AssetCheckEvaluation)
            assert "img_emb_0000.npy and metadata_0000.parquet: changed" in str(event.description)
    finally:
        source.features.fs.store.clear()


def test_failed_arrivals_are_tried_again_without_what_cannot_be_read() -> None:
    asked: set[str] = set()
    times = dict.fromkeys("abcd", 1)

    def choose(todo: str, readable: str) -> str | None:
        found = sensors.choose(list(todo), set(readable), times.get, asked.__contains__)
        if found is None:
            return None
        asked.add(found[0])
        return "".join(found[1])

    assert choose("abc", "") == "abc"
    assert [choose("abc", "ac") for _ in range(4)] == ["ac", "ac", "ac", None]
    assert [choose("b", "") for _ in range(4)] == ["b", "b", "b", None]
    times["b"] = 2  # it was mended
    assert [choose("b", "") for _ in range(4)] == ["b", "b", "b", None]
    assert choose("bd", "") == "bd"
    assert choose("bd", "d") == "d"


def test_each_bitmap_is_published_once_and_a_failure_tried_again() -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        def end(status: dg.DagsterRunStatus) -> str | None:
            key = sensors._next_attempt(instance, "v")
            instance.add_run(
                dg.DagsterRun(job_name="publish", status=status, tags={sensors.RUN_KEY: key or ""})
            )
            return key

        assert end(dg.DagsterRunStatus.FAILURE) == "v-1"
        assert end(dg.DagsterRunStatus.SUCCESS) == "v-2"
        assert sensors._next_attempt(instance, "v") == ""
