"""The plan: sums up, grows with the work, shrinks with the machine; says what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snip_assets.engine import forecast, plan, rates
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.rates import Rates
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

RATES = Rates(2, 4e10, 3e10, 4e8, 2e8, 2e5, 3e4, 4e8, 3e5, 2e9, 1e9)


def predict(rows: int, memory_gb: float = 32, cores: int = 2, disk: float = 2) -> plan.Plan:
    return plan.predict(
        rows, 768, RATES, cores=cores, memory_gb=memory_gb, disk_gb_per_s=disk, shards=64
    )


@given(st.integers(10_000, 10**10), st.floats(1.1, 50))
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


def test_sums_and_problems() -> None:
    planned = predict(2_169_580_984, memory_gb=16)
    value = planned.to_json()
    assert value["hours"] == pytest.approx(sum(s["seconds"] for s in value["stations"]) / 3600)
    assert value["peak_gib"] > max(s["memory_gib"] for s in value["stations"])
    assert any("GiB, not 16" in problem for problem in planned.problems)
    assert any("longer than a day" in problem for problem in planned.problems)
    assert not predict(1_000_000).problems


def test_folder_of_features(tmp_path: Path) -> None:
    rows, dim, itemsize, shards = plan.headers(SAMPLE_FEATURES)
    assert (rows, shards) == (2000, 4)
    assert itemsize == np.load(SAMPLE_FEATURES / "img_emb_0000.npy").itemsize and dim > 1
    with pytest.raises(BadInputError, match="no file named"):
        plan.headers(tmp_path)


def test_rates_of_this_machine_and_how_a_plan_held(tmp_path: Path) -> None:
    measured = rates.measure(tmp_path / "not" / "yet", 64, Settings(workers=1))
    assert all(value > 0 for value in vars(measured).values())
    assert list(tmp_path.iterdir()) == []
    layout = Layout(tmp_path / "out")
    register(layout, Source(SAMPLE_FEATURES, SAMPLE_METADATA))
    for _ in range(2):
        found = forecast.keep(layout, Settings(), {"snip_features": 2.0, "a_check": 1.0}, RATES)
    assert found["measured"] == pytest.approx(3.0)
    assert found["error"] == pytest.approx(found["predicted"] / 3 - 1)
    assert len(forecast.kept(layout)) == 2
