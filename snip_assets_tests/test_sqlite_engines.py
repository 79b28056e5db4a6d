"""Kept engines: the same while their file is the same, on a real Dagster instance."""

from __future__ import annotations

import importlib
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import text

from snip_assets import sqlite_engines
from snip_assets.definitions import defs


@dg.op
def nothing() -> None:
    """Leave events."""


@dg.job
def some() -> None:
    """Of one op."""
    nothing()


def test_dagster_makes_its_engines_here() -> None:
    assert defs
    for name in sqlite_engines._MODULES:
        assert importlib.import_module(name).create_engine is sqlite_engines.kept


def test_events_go_to_the_file_that_is_there(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for _ in range(2):
        home.mkdir()
        with dg.DagsterInstance.local_temp(str(home)) as instance:
            runs = [some.execute_in_process(instance=instance).run_id for _ in range(3)]
            assert {run.run_id for run in instance.get_runs()} == set(runs)
            assert all(len(instance.all_logs(run)) > 5 for run in runs)
        # They are in these files; the next turn makes others in their place.
        home.rename(other)
        with dg.DagsterInstance.local_temp(str(other)) as instance:
            assert {run.run_id for run in instance.get_runs()} == set(runs)
            assert all(len(instance.all_logs(run)) > 5 for run in runs)
        other.rename(tmp_path / f"was-{len(list(tmp_path.iterdir()))}")


def test_an_engine_lasts_as_long_as_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_engines, "_engines", {})
    path = tmp_path / "a.db"
    url = f"sqlite:///{path}"
    first = sqlite_engines.kept(url)
    with first.begin() as connection:
        connection.execute(text("create table t (x int)"))
    second = sqlite_engines.kept(url)
    assert second is not first and sqlite_engines.kept(url) is second
    second.dispose()
    with second.connect() as connection:
        before = connection.connection.dbapi_connection
    with second.connect() as connection:
        assert connection.connection.dbapi_connection is before
    path.replace(tmp_path / "moved.db")
    with sqlite_engines.kept(url).begin() as connection:
        connection.execute(text("create table u (x int)"))
    third = sqlite_engines.kept(url)
    with third.connect() as connection:
        assert connection.execute(text("select name from sqlite_master")).scalars().all() == ["u"]
    monkeypatch.setattr(sqlite_engines, "MOST", 2)
    for name in "bcd":
        (tmp_path / name).touch()
        sqlite_engines.kept(f"sqlite:///{tmp_path / name}")
    assert len(sqlite_engines._engines) <= 2
