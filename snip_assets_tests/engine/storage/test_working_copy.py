"""Two working copies of one url: whatever happens, they come to hold the same whole outputs."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.storage import room, transfers, working_copy
from snip_assets.engine.storage.files import checksum, damage, manifest_path, read_manifest, seal
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.parts import UNSENT, Parts
from snip_assets.engine.storage.remote import DownloadError
from snip_assets.engine.storage.working_copy import WorkingCopy

PARTS = Parts(
    files=frozenset(["registry.json"]),
    plain=frozenset(["notes"]),
    sealed=frozenset(["rows", "whole"]),
    at_once=frozenset(["whole"]),
)
OUTPUTS = ("rows/0", "rows/1", "whole")
URL = "memory://copies/run"


@pytest.fixture
def url() -> Iterator[UPath]:
    yield UPath(URL)
    UPath(URL).fs.store.clear()


def _make(copy: WorkingCopy, name: str, members: dict[str, str]) -> None:
    output = copy.root / name
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for member, text in members.items():
        (output / member).write_text(text)
    seal(output, {})


def _withdraw(copy: WorkingCopy, name: str) -> None:
    copy.discard(manifest_path(copy.root / name))
    shutil.rmtree(copy.root / name, ignore_errors=True)


def _texts(copy: WorkingCopy) -> dict[str, str]:
    """All files, those fetched that are not here; each output must be whole."""
    found = {}
    for name in OUTPUTS:
        if (manifest := read_manifest(copy.root / name)) is not None:
            copy.fetch(copy.root / name, manifest.files)
            assert damage(copy.root / name, manifest) == []
            paths = [(copy.root / name).parent / member for member in manifest.files]
            found |= {str(path.relative_to(copy.root)): path.read_text() for path in paths}
    for path in [copy.root / "registry.json", *(copy.root / "notes").glob("*")]:
        if path.exists() and path.suffix != UNSENT:
            found[str(path.relative_to(copy.root))] = path.read_text()
    return found


def _require_whole_outputs_at_the_url() -> None:
    store = UPath(URL).fs
    for place in store.find(UPath(URL).path):
        if place.endswith(".manifest.json"):
            for member, entry in json.loads(store.cat_file(place))["files"].items():
                with tempfile.NamedTemporaryFile() as file:
                    store.get_file(f"{place.rpartition('/')[0]}/{member}", file.name)
                    assert checksum(Path(file.name)) == entry["xxh3"]


@contextmanager
def _watched() -> Iterator[None]:
    """Look after each change at the url whether every output there is whole."""

    def watched(change: Any) -> Any:
        def call(*arguments: Any) -> Any:
            result = change(*arguments)
            _require_whole_outputs_at_the_url()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_copy, "AT_ONCE", 1)
        for name in ("to_remote", "remove"):
            patch.setattr(transfers, name, watched(getattr(transfers, name)))
        yield


_MEMBERS = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", "y", "longer"]), min_size=1)
_STEPS = st.one_of(
    st.tuples(st.just("make"), st.sampled_from(OUTPUTS), _MEMBERS),
    st.tuples(st.just("withdraw"), st.sampled_from(OUTPUTS)),
    st.tuples(st.just("write"), st.sampled_from(["registry.json", "notes/n"]), st.text("xy")),
    st.tuples(st.just("remove"), st.sampled_from(["registry.json", "notes/n"])),
    st.tuples(st.just("lose"), st.sampled_from(OUTPUTS), st.booleans()),
    st.tuples(st.sampled_from(["send", "refresh"])),
)


def _step(copy: WorkingCopy, kind: str, *values: Any) -> None:
    if kind == "make":
        _make(copy, *values)
    elif kind == "withdraw":
        _withdraw(copy, *values)
    elif kind == "write":
        (copy.root / "notes").mkdir(parents=True, exist_ok=True)
        (copy.root / values[0]).write_text(values[1])
    elif kind == "remove":
        copy.discard(copy.root / values[0])
    elif kind == "lose":
        # What lies at the url may go here at any time; the rest would be lost.
        if copy.holds(copy.root / values[0]):
            shutil.rmtree(copy.root / values[0], ignore_errors=True)
            if values[1]:
                manifest_path(copy.root / values[0]).unlink()
    else:
        getattr(copy, kind)()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), _STEPS), max_size=25))
def test_copies_come_to_hold_the_same(steps: list[tuple[bool, tuple[Any, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, _watched():
        try:
            copies = [WorkingCopy(Path(folder) / name, UPath(URL), PARTS) for name in "AB"]
            for copy in copies:
                copy.refresh()
            for which, step in steps:
                _step(copies[which], *step)
            for copy in (*copies, *copies):
                copy.refresh()
            assert _texts(copies[0]) == _texts(copies[1])
        finally:
            UPath(URL).fs.store.clear()


def test_what_was_sent_is_what_the_last_one_made(url: UPath, tmp_path: Path) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    one.refresh()
    _make(one, "rows/0", {"a": "first", "b": "same"})
    _make(one, "whole", {"a": "w"})
    one.send()
    other.refresh()
    # Of an output that is large, nothing comes before it is asked for.
    assert not (other.root / "rows" / "0").exists() and (other.root / "whole" / "a").exists()
    other.fetch_file(other.root / "rows" / "0" / "b")
    assert [p.name for p in (other.root / "rows" / "0").iterdir()] == ["b"]
    _make(other, "rows/0", {"a": "second", "c": "new"})
    other.send()
    one.refresh()
    assert _texts(one) == {"rows/0/a": "second", "rows/0/c": "new", "whole/a": "w"}
    assert not (url / "rows/0/b").exists()
    _withdraw(one, "rows/0")
    one.send()
    other.refresh()
    assert _texts(other) == {"whole/a": "w"}
    assert [p for p in url.fs.find(url.path) if "rows" in p] == []


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise DownloadError("no")

    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    copy.refresh()
    _make(copy, "rows/0", {"a": "x"})
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "to_remote", refuse)
        copy.written(manifest_path(copy.root / "rows/0"))
        with pytest.raises(DownloadError):
            copy.settle()
    other = WorkingCopy(tmp_path / "B", url, PARTS)
    other.refresh()
    assert _texts(other) == {}
    WorkingCopy(tmp_path / "A", url, PARTS).refresh()
    other.refresh()
    assert _texts(other) == {"rows/0/a": "x"}


def test_what_goes_here_by_other_hands_comes_again(url: UPath, tmp_path: Path) -> None:
    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    _make(copy, "rows/0", {"a": "x"})
    _make(copy, "whole", {"a": "w"})
    (copy.root / "registry.json").write_text("{}")
    copy.refresh()
    for path in copy.root.glob("[a-z]*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    copy.send()
    copy.refresh()
    assert _texts(copy) == {"rows/0/a": "x", "whole/a": "w", "registry.json": "{}"}


def test_what_is_just_being_made_is_not_taken(url: UPath, tmp_path: Path) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    other.refresh()
    _make(one, "rows/0", {"a": "x"})
    one.refresh()
    with lock(other.root / "rows/0"):
        (other.root / "rows/0").mkdir()
        (other.root / "rows/0" / "a").write_text("mine")
        other.refresh()
        seal(other.root / "rows/0", {})
    other.send()
    one.refresh()
    assert _texts(one) == _texts(other) == {"rows/0/a": "mine"}


def test_a_send_that_failed_leaves_nothing_of_it_behind(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, place: Any) -> str:
        if path.name == "b":
            raise DownloadError("no")
        return send(path, place)

    send = transfers.to_remote
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "x", "b": "x"})
    one.refresh()
    _make(one, "rows/0", {"a": "y", "b": "y"})
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "to_remote", fail)
        with pytest.raises(DownloadError):
            one.send()
    # What comes to be made is what was there before: `a` there is not.
    _make(one, "rows/0", {"a": "x", "b": "x"})
    one.send()
    other.refresh()
    assert _texts(other) == {"rows/0/a": "x", "rows/0/b": "x"}


def test_a_folder_that_is_gone_takes_nothing_with_it(url: UPath, tmp_path: Path) -> None:
    copy = WorkingCopy(tmp_path / "A", url, replace(PARTS, always="registry.json"))
    _make(copy, "rows/0", {"a": "x"})
    (copy.root / "registry.json").write_text("{}")
    copy.refresh()
    url.fs.store.clear()
    with pytest.raises(StaleOutputError, match=r"registry.json was sent there, and is gone"):
        copy.refresh()
    assert _texts(copy) == {"rows/0/a": "x", "registry.json": "{}"}


def test_a_file_that_is_damaged_at_the_url_does_not_come(url: UPath, tmp_path: Path) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "right"})
    one.refresh()
    (url / "rows/0/a").write_text("wrong")
    other.refresh()
    manifest = read_manifest(other.root / "rows/0")
    assert manifest is not None
    other.fetch(other.root / "rows/0", manifest.files)
    assert damage(other.root / "rows/0", manifest) == [f"{other.root}/rows/0/a: missing"]


def test_files_go_when_there_is_no_room_and_come_again(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RECENT", 0.0)
    monkeypatch.setattr(working_copy, "BETWEEN_TRIMS", 0.0)
    copy = WorkingCopy(tmp_path / "A", url, PARTS, limit=25)
    copy.refresh()
    for n in range(5):
        _make(copy, f"rows/{n}", {"a": f"{n}" * 10})
        copy.send()
        assert sum(p.stat().st_size for p in copy.root.glob("rows/*/a")) <= 30
    for n in range(5):
        copy.fetch_file(copy.root / f"rows/{n}/a")
        assert (copy.root / f"rows/{n}/a").read_text() == f"{n}" * 10
        assert sum(p.stat().st_size for p in copy.root.glob("rows/*/a")) <= 30


def test_what_was_made_anew_stays_when_the_former_was_withdrawn_elsewhere(
    url: UPath, tmp_path: Path
) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "former"})
    one.refresh()
    other.refresh()
    _make(one, "rows/0", {"a": "anew"})
    _withdraw(other, "rows/0")
    other.send()
    one.refresh()
    other.refresh()
    assert _texts(one) == _texts(other) == {"rows/0/a": "anew"}


def test_what_a_killed_process_left_is_not_taken_for_what_another_machine_made(
    url: UPath, tmp_path: Path
) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "right", "b": "former"})
    one.refresh()
    other.refresh()
    (one.root / "rows/0/a").write_text("wrong")
    _make(other, "rows/0", {"a": "right", "b": "now"})
    other.send()
    one.refresh()
    assert _texts(one) == {"rows/0/a": "right", "rows/0/b": "now"}


def test_what_another_machine_sent_is_not_taken_for_what_this_one_had(
    url: UPath, tmp_path: Path
) -> None:
    one, other, third = (WorkingCopy(tmp_path / name, url, PARTS) for name in "ABC")
    _make(one, "rows/0", {"a": "1", "b": "1"})
    one.refresh()
    other.refresh()
    _make(other, "rows/0", {"a": "2", "b": "2"})
    other.send()
    _make(one, "rows/0", {"a": "1", "b": "3"})
    with _watched():
        one.send()
    third.refresh()
    assert _texts(third) == {"rows/0/a": "1", "rows/0/b": "3"}


def test_a_file_that_was_not_sent_is_kept_beside_that_of_another_machine(
    url: UPath, tmp_path: Path
) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    for copy, text in ((one, "former"), (other, "theirs")):
        copy.refresh()
        (copy.root / "registry.json").write_text(text)
        copy.send()
    (one.root / "registry.json").write_text("mine")
    one.refresh()
    assert (one.root / "registry.json").read_text() == "theirs"
    assert (one.root / "registry.json.unsent").read_text() == "mine"


def test_a_file_comes_once_though_many_threads_ask_for_it(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_hash(path: PurePath) -> int:
        time.sleep(0.002)
        return hash(str(path))

    def counted(*values: Any) -> None:
        came.append(values)
        time.sleep(0.1)
        take(*values)

    came: list[Any] = []
    take = transfers.to_local
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "x"})
    one.refresh()
    other.refresh()
    monkeypatch.setattr(transfers, "to_local", counted)
    monkeypatch.setattr(PurePath, "__hash__", slow_hash)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: other.fetch(other.root / "rows/0", ["0/a"]), range(8)))
    assert len(came) == 1


def test_what_is_just_being_made_is_not_removed(url: UPath, tmp_path: Path) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    _make(one, "rows/0", {"a": "x"})
    one.refresh()
    other.refresh()
    _withdraw(one, "rows/0")
    one.send()
    with lock(other.root / "rows/0"):
        (other.root / "rows/0").mkdir(exist_ok=True)
        (other.root / "rows/0" / "a").write_text("anew")
        other.refresh()
        seal(other.root / "rows/0", {})
    other.refresh()
    one.refresh()
    assert _texts(one) == {"rows/0/a": "anew"}
