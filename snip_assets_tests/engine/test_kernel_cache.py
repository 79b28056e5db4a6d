"""Compiled kernels find a folder, and never those of other code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from snip_assets.engine import kernel_cache
from snip_assets.engine.kernel_cache import VARIABLE


def _used(environment: dict[str, str]) -> Path:
    kernel_cache.use(environment)
    return Path(environment[VARIABLE])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(kernel_cache.sys.modules, "numba", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def test_each_state_of_the_code_has_its_own(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"XDG_CACHE_HOME": str(elsewhere / "cache")}
    first = _used(dict(cache))
    assert first == _used(dict(cache))
    assert first.is_relative_to(elsewhere / "cache")
    monkeypatch.setattr(kernel_cache, "digest", lambda: "other")
    assert _used(dict(cache)) != first
    os.utime(first, (0, 0))
    _used(dict(cache))
    assert not first.exists()


def test_the_user_s_own_folder_wins(elsewhere: Path) -> None:
    assert _used({VARIABLE: "mine"}) == Path("mine")


def test_a_folder_that_others_can_write_is_not_trusted(elsewhere: Path) -> None:
    open_to_all = elsewhere / "cache" / "snip_assets"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    found = _used({"XDG_CACHE_HOME": str(elsewhere / "cache")})
    assert found.is_relative_to(elsewhere / "tmp")
    found.parent.chmod(0o777)
    again = _used({"XDG_CACHE_HOME": str(elsewhere / "cache")})
    assert again.parent == elsewhere / "tmp"
    assert again.stat().st_mode & 0o077 == 0


def test_no_home_at_all(elsewhere: Path) -> None:
    (elsewhere / "file").touch()
    assert _used({"XDG_CACHE_HOME": str(elsewhere / "file")}).is_relative_to(elsewhere / "tmp")


def test_no_home_and_no_entry_of_the_user(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernel_cache.Path, "home", nowhere)
    assert _used({}).is_relative_to(elsewhere / "tmp")


def test_the_folder_of_other_code_is_not_inherited(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"XDG_CACHE_HOME": str(elsewhere / "cache")}
    first = _used(environment)
    monkeypatch.setattr(kernel_cache, "digest", lambda: "0123456789abcdef")
    assert _used(environment) == first.with_name("kernels-0123456789abcdef")
