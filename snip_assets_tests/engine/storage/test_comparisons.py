"""A checksum that held is believed for a week, unless something happened to the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.storage import comparisons, files

Another = Callable[[], list[Path]]


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Another:
    """Call it, and what follows happens in another process; the files that it reads are listed."""
    monkeypatch.setattr(comparisons, "_notes", {})
    comparisons.note_in(tmp_path, tmp_path / ".compared")
    checksum = files.checksum
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return checksum(path)

    def process() -> list[Path]:
        monkeypatch.setattr(comparisons, "_here", {})
        read.clear()
        return read

    monkeypatch.setattr(files, "checksum", counted)
    return process


@pytest.fixture
def output(tmp_path: Path, another: Another) -> Path:
    """A folder of two files, sealed."""
    another()
    folder = tmp_path / "index_shards" / "0001"
    (folder / "b").mkdir(parents=True)
    np.save(folder / "b" / "codes.npy", np.arange(1000))
    np.save(folder / "b-rows.npy", np.arange(10))
    files.seal(folder, {})
    return folder


def test_what_was_compared_is_not_read_again(output: Path, another: Another) -> None:
    read = another()
    for level in ("size", "recent"):
        files.require(output, "a", level)
    assert read == []
    files.require(output, "a", "full")
    assert len(read) == 2
    files.require(output, "a", "full")
    assert len(read) == 2, "once in a process"


def test_after_a_week_it_is_read_once(output: Path, another: Another, tmp_path: Path) -> None:
    note = tmp_path / ".compared" / "index_shards" / "0001.json"
    for age, reads in ((comparisons.LASTS, 2), (-60, 2), (comparisons.LASTS - 60, 0)):
        found = json.loads(note.read_text())
        note.write_text(json.dumps(found | {"at": found["at"] - age}))
        read = another()
        files.require(output, "a", "recent")
        assert len(read) == reads
    read = another()
    note.write_text(note.read_text()[:50])
    files.require(output, "a", "recent")
    assert len(read) == 2, "a damaged note is none"


@pytest.mark.parametrize("way", ["in place", "replaced", "copied"])
def test_changed_bytes_are_told_though_size_and_time_are_the_same(
    output: Path, another: Another, way: str
) -> None:
    path = output / "b" / "codes.npy"
    status = path.stat()
    changed = path.read_bytes()[:-1] + b"\7"
    another()
    if way == "replaced":
        path.unlink()
    if way == "copied":
        # The whole folder is a copy, of which one file went wrong.
        shutil.copytree(output, output.parent / "copy")
        shutil.rmtree(output)
        (output.parent / "copy").rename(output)
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StaleOutputError, match=r"codes\.npy: checksum differs"):
        files.require(output, "a", "recent")
    with pytest.raises(StaleOutputError, match=r"codes\.npy: checksum differs"):
        files.require(output, "a", "recent")


def test_of_parts_only_what_is_new_is_read(output: Path, another: Another) -> None:
    whole, newer = output.parent, output.parent / "0002"
    read = another()
    newer.mkdir()
    np.save(newer / "codes.npy", np.arange(10))
    files.seal(newer, {})
    files.seal_parts(whole, {}, [output, newer])
    read.clear()
    files.require(whole, "a", "recent")
    assert read == [], "each part was compared"
    another()
    (whole.parent / ".compared" / "index_shards" / "0002.json").unlink()
    files.require(whole, "a", "recent")
    assert read == [newer / "codes.npy"]
    files.manifest_path(newer).write_text("{")
    another()
    files.require(whole, "a", "recent")
    assert len(read) == 3, "a part whose manifest is damaged cannot tell"


def test_a_part_that_changed_since_is_told(output: Path, another: Another) -> None:
    whole = output.parent
    files.seal_parts(whole, {}, [output])
    another()
    np.save(output / "b-rows.npy", np.arange(10)[::-1])
    with pytest.raises(StaleOutputError, match=r"b-rows\.npy: checksum differs"):
        files.require(whole, "a", "recent")
    files.seal(output, {})
    another()
    with pytest.raises(StaleOutputError, match=r"b-rows\.npy: checksum differs"):
        files.require(whole, "a", "recent")


def test_what_a_killed_process_left_goes_with_the_next_note(
    output: Path, another: Another, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    another()
    os.utime(output / "b-rows.npy", ns=(7, 7))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            files.require(output, "a", "recent")
    assert list((tmp_path / ".compared").rglob(".tmp-*"))
    another()
    files.require(output, "a", "recent")
    assert not list((tmp_path / ".compared").rglob(".tmp-*"))
