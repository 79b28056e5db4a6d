"""A send that sent nothing is told, unless it need not have; a file that two wrote is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from snip_assets.engine.storage import transfers
from snip_assets.engine.storage.files import manifest_path, seal
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.parts import Parts
from snip_assets.engine.storage.remote import DownloadError
from snip_assets.engine.storage.working_copy import WorkingCopy

PARTS = Parts(frozenset(["registry.json"]), frozenset(["notes"]), frozenset(["rows"]), frozenset())


@pytest.fixture
def url() -> Iterator[UPath]:
    yield UPath("memory://unsent/run")
    UPath("memory://unsent/run").fs.store.clear()


def _make(copy: WorkingCopy, text: str) -> Path:
    path = copy.root / "rows" / "0"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    seal(path, {})
    return path


@pytest.mark.parametrize("name", ["registry.json", "rows/0", "rows/0.manifest.json"])
def test_a_store_that_tells_another_length_is_told(
    name: str, url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = MemoryFileSystem.info

    def longer(self: Any, path: str, **named: Any) -> dict[str, Any]:
        found = info(self, path, **named)
        return {**found, "size": found["size"] + path.endswith(name)}

    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    copy.refresh()
    _make(copy, "x")
    (copy.root / "registry.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", longer)
        patch.setattr(transfers, "SECONDS_BETWEEN_LOOKS", 0.0)
        with pytest.raises(DownloadError, match=f"{name.split('.')[0]}.*does not lie there"):
            copy.send()
    copy.send()
    other = WorkingCopy(tmp_path / "B", url, PARTS)
    other.refresh()
    other.fetch_file(other.root / "rows" / "0")
    assert [(other.root / n).read_text() for n in ("rows/0", "registry.json")] == ["x", "{}"]


def test_a_file_that_is_newer_than_its_manifest_is_sent_if_it_is_what_that_names(
    url: UPath, tmp_path: Path
) -> None:
    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    copy.refresh()
    path = _make(copy, "right")
    os.utime(path, ns=(0, manifest_path(path).stat().st_mtime_ns + 1))
    copy.send()
    assert (url / "rows/0").read_text() == "right"
    _make(copy, "other")
    path.write_text("wrong")
    # Who makes it just now sends it.
    with lock(path):
        copy.send()
    with pytest.raises(DownloadError, match=r"is not what this manifest names\. Delete"):
        copy.send()
    _make(copy, "wrong")
    copy.send()
    assert (url / "rows/0").read_text() == "wrong"


def test_another_machine_that_was_first_is_no_failure(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    for copy in (one, other):
        copy.refresh()
        _make(copy, copy.root.name)
    send = transfers.to_remote

    def late(path: Path, place: Any) -> str | None:
        monkeypatch.setattr(transfers, "to_remote", send)
        other.send()
        return None

    monkeypatch.setattr(transfers, "to_remote", late)
    one.send()
    one.refresh()
    one.fetch_file(one.root / "rows" / "0")
    assert (one.root / "rows" / "0").read_text() == (url / "rows/0").read_text() == "B"


@pytest.mark.parametrize("name", ["registry.json", "notes/n"])
def test_a_file_that_two_machines_wrote_is_kept_beside_that_of_the_first(
    name: str, url: UPath, tmp_path: Path
) -> None:
    one, other = (WorkingCopy(tmp_path / name, url, PARTS) for name in "AB")
    for copy in (one, other):
        copy.refresh()
        (copy.root / name).parent.mkdir(exist_ok=True)
        (copy.root / name).write_text(copy.root.name)
    for copy in (one, other, one, other):
        copy.send()
        copy.refresh()
    assert (other.root / name).read_text() == (url / name).read_text() == "A"
    assert (other.root / f"{name}.unsent").read_text() == "B"
    assert [p for p in url.fs.find(url.path) if p.endswith(".unsent")] == []


def test_what_this_machine_sent_is_not_taken_for_that_of_another(
    url: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent_and(path: Path, place: Any) -> str:
        if (found := send(path, place)) and path.read_text() == "1":
            path.write_text("2")
            return found
        raise DownloadError("no answer")

    send = transfers.to_remote
    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    copy.refresh()
    path = copy.root / "registry.json"
    path.write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "to_remote", sent_and)
        # Written again while it is sent.
        copy.send()
        # Arrived, which nobody noted.
        with pytest.raises(DownloadError, match="no answer"):
            copy.send()
    copy.send()
    assert (url / "registry.json").read_text() == "2"
    assert [p.name for p in copy.root.iterdir() if p.is_file() and p.name[0] != "."] == [path.name]
