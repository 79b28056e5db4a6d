"""The plan: sums up, grows with the work, shrinks with the machine; says what does not fit."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snip_assets.commands import dedup
from snip_assets.engine import choices, forecast, plan, rates, stations
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.rates import Rates
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

RATES = Rates(2, 4e10, 3e10, 5e5, 4e8, 2e8, 2e5, 4e8, 3e5, 2e9, 1e9)


def predict(
    rows: int,
    memory_gb: float = 32,
    cores: int = 2,
    disk: float = 2,
    settings: Settings | None = None,
) -> plan.Plan:
    settings = settings or Settings(codec="PQ16")
    machine: dict[str, Any] = {"cores": cores, "memory_gb": memory_gb, "disk_gb_per_s": disk}
    return plan.predict(rows, 768, RATES, settings, shards=64, **machine)


# From where on calibration searches true pairs in all rows, which is less than in a large sample.
@given(st.integers(300_000, 10**10), st.floats(1.1, 50))
def test_more_rows_never_take_less(rows: int, more: float) -> None:
    one, other = predict(rows), predict(int(rows * more))
    assert other.seconds >= one.seconds
    assert other.disk_gb >= one.disk_gb
    for a, b in zip(one.stations, other.stations, strict=True):
        assert b.write_gb >= a.write_gb, a.name


@given(st.integers(10_000, 10**10), st.integers(1, 64))
def test_more_cores_memory_and_disk_never_take_longer(rows: int, cores: int) -> None:
    base = predict(rows, cores=cores)
    assert predict(rows, cores=cores + 1).seconds <= base.seconds
    assert predict(rows, cores=cores, memory_gb=64).seconds <= base.seconds
    assert predict(rows, cores=cores, disk=4).seconds <= base.seconds


def test_a_gpu_takes_over_the_net_and_where_it_was_measured_the_join() -> None:
    base, other = (
        {s.name: s.seconds for s in plan.predict(10**8, 768, RATES, gpu_tflops=gpu).stations}
        for gpu in (0.0, 20.0)
    )
    faster = {name for name in base if other[name] < base[name]}
    assert faster == {"snip_model", "snip_features"}
    assert all(other[name] == base[name] for name in base.keys() - faster)
    seen = plan.predict(10**8, 768, replace(RATES, gpu=2e13, gpu_join=1e11))
    quicker = {s.name for s in seen.stations if s.seconds < base[s.name]}
    assert quicker == faster | {"duplicate_pairs"}
    # Many cores are as fast as the GPU.
    here, there = (
        plan.predict(10**8, 768, replace(RATES, cores=choices.JOIN_CORES, gpu_join=rate))
        for rate in (0.0, 1e11)
    )
    assert here.stations == there.stations


def test_sums_and_problems() -> None:
    planned = predict(2_169_580_984, memory_gb=16)
    value = planned.to_json()
    assert value["hours"] == pytest.approx(sum(s["seconds"] for s in value["stations"]) / 3600)
    assert value["hours"] / 2 < value["retraining_hours"] < value["hours"]
    assert value["peak_gib"] > max(s["memory_gib"] for s in value["stations"])
    assert any("GiB, not 16" in problem for problem in planned.problems)
    assert any("longer than a day" in problem for problem in planned.problems)
    assert not predict(1_000_000).problems


def test_each_problem_comes_with_its_own_cure() -> None:
    def told(rows: int, settings: Settings, **machine: float) -> str:
        return " ".join(plan.predict(rows, 1024, RATES, settings, **machine).problems)

    few, many = Settings(workers=4), Settings()
    assert "another disk with --out" in told(10**7, many, memory_gb=32, free=1e9)
    assert "disk" not in told(10**7, many, memory_gb=32, free=1e12)
    assert "than `--memory-gb 900`" in told(10**9, Settings(memory_gb=900), memory_gb=32)
    said = told(10**7, many, memory_gb=16, cores=192)
    assert "clip_features needs" in said and "fewer `--workers`" in said
    assert not told(10**7, few, memory_gb=16, cores=192)


def test_folder_of_features(tmp_path: Path) -> None:
    rows, dim, itemsize, shards = plan.headers(SAMPLE_FEATURES)
    assert (rows, shards) == (2000, 4)
    assert itemsize == np.load(SAMPLE_FEATURES / "img_emb_0000.npy").itemsize and dim > 1
    with pytest.raises(BadInputError, match="no file named"):
        plan.headers(tmp_path)


def test_features_are_read_first_as_fast_as_they_come(tmp_path: Path) -> None:
    slow, usual = (
        {s.name: s for s in plan.predict(10**7, 768, RATES, source_rate=rate).stations}
        for rate in (1e7, 0.0)
    )
    assert slow["clip_features"].seconds == pytest.approx(10**7 * 1536 / 1e7, rel=0.01)
    assert slow["clip_features"].read_gb == usual["clip_features"].read_gb
    del slow["clip_features"], usual["clip_features"]
    assert slow == usual
    layout, source = Layout(tmp_path / "out"), Source(SAMPLE_FEATURES, SAMPLE_METADATA)
    assert forecast.source_rate(layout, source) > 1e6
    # After a first run they may lie in memory.
    register(layout, source)
    assert forecast.source_rate(layout, source) == 0
    nowhere = Source(tmp_path, tmp_path)
    assert forecast.source_rate(Layout(tmp_path / "other"), nowhere) == 0


@pytest.mark.parametrize("codec", ["PQ8", "auto", "PQ4"])
def test_a_run_uses_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(choices, "LONG_LIST", 10)
    settings = Settings(codec=codec, memory_gb=1100 / choices.JOIN_ROWS_PER_GB, workers=2)
    layout = Layout(tmp_path)
    register(layout, Source(SAMPLE_FEATURES, SAMPLE_METADATA))
    run = stations.Run(layout, settings)
    keys, registry = run.registry.keys, run.registry
    for station in (stations.clip_features, stations.snip_features, stations.index_shards):
        if station is stations.snip_features:
            stations.snip_model(run)
        if station is stations.index_shards:
            trained = stations.trained_index(run)
        station(run, keys)
    stations.snip_index(run)
    pairs = stations.duplicate_pairs(run, keys)
    planned = plan.predict(registry.rows, registry.dim, RATES, settings, shards=len(keys))
    assert trained.facts["lists"] == planned.lists
    assert trained.facts["codec"] == planned.codec == {"auto": "PQ16"}.get(codec, codec)
    assert {m.facts["joined_together"] for m in pairs.values()} == {planned.shards_a_run} == {2}


def test_every_step_of_a_run_is_planned() -> None:
    assert {s.name for s in predict(10**6).stations} == {*dedup._ORDER, "checks"}


@given(st.lists(st.integers(0, 30)), st.integers(1, 50))
def test_shards_joined_together(sizes: list[int], most: int) -> None:
    batches = list(choices.batches(range(len(sizes)), sizes, most))
    assert [number for batch in batches for number in batch] == list(range(len(sizes)))
    for batch, following in pairwise([*batches, []]):
        assert len(batch) == 1 or sum(sizes[n] for n in batch) <= most
        assert not following or sum(sizes[n] for n in [*batch, following[0]]) > most


def test_codes_are_finer_where_lists_are_long() -> None:
    assert choices.codec(10_000_000, Settings()) == "PQ8"
    assert choices.codec(100_000_000, Settings()) == "PQ16"
    assert choices.codec(1_000_000, Settings(lists=10)) == "PQ16"
    given = Settings(codec="PQ8")
    assert choices.codec(100_000_000, given) == "PQ8"
    coarse, finer = (predict(100_000_000, settings=some) for some in (given, Settings()))
    assert any("--codec auto" in problem for problem in coarse.problems)
    assert coarse.seconds > finer.seconds and coarse.disk_gb < finer.disk_gb


def test_rates_of_this_machine_and_how_a_plan_held(tmp_path: Path) -> None:
    measured = rates.measure(tmp_path / "not" / "yet", 64, Settings(workers=1, codec="PQ8"))
    there = torch.cuda.is_available()
    assert all((v > 0) == (there or "gpu" not in name) for name, v in vars(measured).items())
    assert list(tmp_path.iterdir()) == []
    layout = Layout(tmp_path / "out")
    register(layout, Source(SAMPLE_FEATURES, SAMPLE_METADATA))
    for _ in range(2):
        found = forecast.record(layout, Settings(), {"snip_features": 2.0, "a_check": 1.0}, RATES)
    assert found["measured"] == pytest.approx(3.0)
    assert found["error"] == pytest.approx(found["predicted"] / 3 - 1)
    assert len(forecast.recorded(layout)) == 2
