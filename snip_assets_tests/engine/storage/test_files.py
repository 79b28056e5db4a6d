"""Files that are whole or absent, under damage, full disks and two writers."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import resource
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snip_assets.engine.errors import BadInputError, DiskFullError, StaleOutputError
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import load, register
from snip_assets.engine.storage import files, locks
from snip_assets.options import default_source
from snip_assets.resources import DataSet


def _limited(work: str, folder: Path, pipe: multiprocessing.connection.Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    array = np.zeros((1000, 8), np.uint8)
    try:
        if work == "npy":
            files.write_npy(folder / "a.npy", array)
        else:
            with files.NpyWriter(folder / "a.npy", (1000, 8), np.uint8) as writer:
                writer.append(array)
        pipe.send("written")
    except Exception as error:
        pipe.send((type(error), str(error)))


@pytest.mark.parametrize("work", ["npy", "blocks"])
def test_a_full_disk_is_told_and_the_old_file_stays(work: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"old")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_limited, args=(work, tmp_path, there))
    child.start()
    kind, message = here.recv()
    child.join()
    assert kind is DiskFullError and "a.npy" in message and "Free space" in message
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == b"old"


def test_save_npy_writes_what_numpy_does(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.float16), np.ones(3, bool)):
        files.save_npy(tmp_path / "ours.npy", array)
        np.save(tmp_path / "theirs.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_rows_that_were_not_written_are_told_and_the_old_file_stays(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "a.npy", np.arange(4))
    for rows in (2, 4):
        with (
            pytest.raises(RuntimeError, match=f"wrote {rows} rows of 3"),
            files.NpyWriter(tmp_path / "a.npy", (3,), np.int64) as writer,
        ):
            writer.append(np.zeros(rows))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3]


def test_a_flipped_bit_is_found_unless_only_sizes_are_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "a.npy"
    files.write_npy(output, np.arange(100))
    files.seal(output, {})
    assert files.require(output, "a", "full").bytes == output.stat().st_size
    data = bytearray(output.read_bytes())
    data[-1] ^= 1
    output.write_bytes(bytes(data))
    os.utime(output, ns=(1, 1))
    assert files.require(output, "a", "size")
    with pytest.raises(StaleOutputError, match=r"checksum differs.*materialise a again"):
        files.require(output, "a", "full")


def test_a_damaged_manifest_is_an_error_and_its_output_is_made_again(tmp_path: Path) -> None:
    output = tmp_path / "a.npy"
    files.write_npy(output, np.arange(100))
    files.seal(output, {})
    manifest = files.manifest_path(output)
    whole = manifest.read_text()
    flipped = [('"xxh3"', '"xxh2"'), ('"bytes"', '"cytes"'), ('"files":', '"files";')]
    for good, bad in flipped:
        manifest.write_text(json.dumps(json.loads(whole)).replace(good, bad))
        assert files.current(output, {}) is None
        with pytest.raises(StaleOutputError, match="damaged"):
            files.read_manifest(output)


def _hold(output: Path, log: Path) -> None:
    with locks.lock(output):
        with open(log, "a") as file:
            file.write("in ")
        time.sleep(0.05)
        with open(log, "a") as file:
            file.write("out ")


def test_one_process_at_a_time_holds_the_lock_and_leftovers_go(tmp_path: Path) -> None:
    output, log = tmp_path / "out" / "a", tmp_path / "log"
    output.parent.mkdir()
    (output.parent / ".tmp-a-0123456789ab").write_text("left by a killed process")
    (output.parent / ".tmp-other-0123456789ab").write_text("of another output")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_hold, args=(output, log)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert log.read_text().split() == ["in", "out"] * 6
    assert [p.name for p in output.parent.iterdir()] == [".tmp-other-0123456789ab"]


def test_an_output_that_is_newer_than_its_manifest_is_compared(tmp_path: Path) -> None:
    output, inputs = tmp_path / "x.npy", {"from": "a"}
    files.write_npy(output, np.zeros(4))
    files.seal(output, inputs)
    files.write_npy(output, np.ones(4))  # and killed before it was sealed
    later = files.manifest_path(output).stat().st_mtime_ns + 10**9
    os.utime(output, ns=(later, later))
    assert files.current(output, inputs) is None
    with pytest.raises(StaleOutputError, match="checksum differs"):
        files.require(output, "x", "size")
    files.write_npy(output, np.zeros(4))  # a copy of the folder has other times
    os.utime(output, ns=(later, later))
    assert files.current(output, inputs) is not None


@pytest.mark.parametrize("dies", [False, True])
def test_a_folder_is_the_former_or_the_new_one(
    dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"

    def write(text: str) -> None:
        with files.atomic_path(place) as folder:
            folder.mkdir()
            (folder / "codes").write_text(text)

    write("former")
    move = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == place:
            monkeypatch.setattr(Path, "replace", move)
            raise KeyboardInterrupt if dies else OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt if dies else DiskFullError):
        write("new")
    # Without waiting for the next run, unless there was nobody left to do it.
    assert place.exists() != dies
    with locks.lock(place):
        assert (place / "codes").read_text() == "former"
    write("new")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert (place / "codes").read_text() == "new"


def test_a_former_folder_does_not_come_back_once_the_new_one_is_in_place(tmp_path: Path) -> None:
    for name in ("index", ".former-index"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "codes").write_text(name)
    with locks.lock(tmp_path / "index"):
        assert (tmp_path / "index" / "codes").read_text() == "index"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    data = bytearray(path.read_bytes())
    data[12:14] = b'"""'[:2]
    path.write_bytes(bytes(data))
    with pytest.raises(BadInputError, match=r"a\.npy: damaged"):
        files.open_npy(path)


def test_threads_do_not_disturb_each_others_headers(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.npy" for number in range(8)]
    for path in paths:
        np.save(path, np.zeros((2, 3)))

    class Cycle:
        pass

    def opened(number: int) -> tuple[int, ...]:
        own: Any = Cycle()
        own.own = own
        # While a header is parsed it is collected, and in its finalizer another thread goes on.
        weakref.finalize(own, sum, range(200))
        return files.open_npy(paths[number % len(paths)]).shape

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(opened, range(2000))) == {(2, 3)}
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)


def test_a_changed_registry_is_noticed(tmp_path: Path) -> None:
    layout = DataSet.of(default_source({}), tmp_path, Settings()).layout
    register(layout, default_source({}))
    text = layout.registry.read_text()
    layout.registry.write_text(text.replace('"rows": 500', '"rows": 501', 1))
    with pytest.raises(StaleOutputError, match="damaged"):
        load(layout)


def test_a_folder_of_many_files_needs_few_open_ones(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Other tests may have left some open.
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, limits[1]))
    try:
        with files.atomic_path(tmp_path / "folder") as folder:
            folder.mkdir()
            for number in range(300):
                (folder / str(number)).touch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list((tmp_path / "folder").iterdir())) == 300


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.ESTALE, OSError), (errno.EACCES, BadInputError)]
)
def test_a_fault_that_may_pass_stays_what_it_is(tmp_path, monkeypatch, number, raised):
    def fail(*_: object) -> int:
        raise OSError(number, "fault")

    monkeypatch.setattr(locks.os, "open", fail)
    with pytest.raises(raised) as error, locks.lock(tmp_path / "out"):
        pass
    assert isinstance(error.value, BadInputError) == (raised is BadInputError)


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError) as raised, files.atomic_path(tmp_path / "a.npy"):
        raise RuntimeError("faiss: could not open the file")
    assert raised.value.filename == str(tmp_path)
