"""Output folders at urls: a run goes on on any machine, and makes the bytes of a local one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from snip_assets.engine import remote_outputs, stations
from snip_assets.engine.copy_out import copy_out
from snip_assets.engine.errors import BadInputError, StaleOutputError, may_pass
from snip_assets.engine.layout import STATIONS, WHOLE, Layout
from snip_assets.engine.moved import move
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, load, register
from snip_assets.engine.storage import room, working_copies, working_copy
from snip_assets.engine.storage.files import manifest_path, open_npy, require
from snip_assets.engine.storage.remote import DownloadError
from snip_assets.engine.withdraw import withdraw
from snip_assets.options import SAMPLE

SETTINGS = Settings(check="size", steps=50)
# The seconds are another machine's.
LEFT_OUT = (".manifest.json", "model.json")

Machine = Callable[[str], Layout]


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://outputs"
    UPath("memory://outputs").fs.store.clear()


@pytest.fixture(params=["memory", "s3", "gs"])
def root(request: pytest.FixtureRequest) -> str:
    """Of each store in turn."""
    return f"{request.getfixturevalue(request.param)}/results/run"


@pytest.fixture
def on(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Go to a machine, and open the output folder there."""
    opened: dict[str, tuple[dict, dict]] = {}

    def machine(name: str) -> Layout:
        urls, roots = opened.setdefault(name, ({}, {}))
        monkeypatch.setattr(remote_outputs, "_open", urls)
        monkeypatch.setattr(working_copies, "_open", roots)
        monkeypatch.setenv(remote_outputs.PLACE, str(tmp_path / name))
        folder = remote_outputs.folder(root)
        remote_outputs.refresh(folder)
        return Layout(folder)

    yield machine
    for urls, _ in opened.values():
        for copy in urls.values():
            copy.settle()


def _station(name: str, layout: Layout, settings: Settings = SETTINGS) -> None:
    run = Run(layout, settings)
    station: Any = getattr(stations, name)
    station(run) if name in WHOLE else station(run, run.registry.keys)


def _digests(root: Any) -> dict[str, str]:
    tops = {*STATIONS, "shards.json", "row_offsets.npy"}
    found = {}
    for path in sorted(root.rglob("*"), key=str):
        name = str(path).removeprefix(f"{root}/")
        if name.split("/")[0] in tops and path.is_file() and not name.endswith(LEFT_OUT):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run on local files makes."""
    layout = Layout(tmp_path_factory.mktemp("local") / "out")
    register(layout, SAMPLE)
    for name in STATIONS:
        _station(name, layout)
    return _digests(layout.root)


def test_every_station_goes_on_where_another_machine_stopped(
    root: str, on: Machine, local: dict[str, str]
) -> None:
    register(on("first"), SAMPLE)
    remote_outputs.send()
    for name in STATIONS:
        _station(name, on(f"of {name}"))
        remote_outputs.send()
    assert _digests(UPath(root)) == local
    # Nothing large comes to see that all is there.
    layout = on("last")
    before = {p: p.stat().st_mtime_ns for p in layout.root.rglob("*.manifest.json")}
    for name in STATIONS:
        _station(name, layout)
    after = {p: p.stat().st_mtime_ns for p in layout.root.rglob("*.manifest.json")}
    assert before == after
    assert not [*layout.root.glob("snip_features/*.npy"), *layout.root.glob("snip_index/*/*.npy")]


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_two_machines_take_turns_with_little_room(
    root: str,
    on: Machine,
    local: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "RECENT", 0.0)
    monkeypatch.setattr(working_copy, "BETWEEN_TRIMS", 0.0)
    monkeypatch.setenv(remote_outputs.LIMIT, "0.0005")
    # A link to a place is that place.
    (tmp_path / "other").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    shutil.copytree(SAMPLE.features, tmp_path / "img_emb")
    source = Source(tmp_path / "img_emb", SAMPLE.metadata)
    hidden = tmp_path / "img_emb_0003.npy"
    (source.features / hidden.name).rename(hidden)
    register(on("one"), source, ["0000", "0001", "0002"])
    for name in STATIONS:
        _station(name, on("one"))
    remote_outputs.send()
    hidden.rename(source.features / hidden.name)
    register(on("other"), source)
    for name in STATIONS:
        _station(name, on("other"))
    remote_outputs.send()
    assert str(Layout(on("other").root.resolve())) == root
    layout = on("one")
    made = {name: manifest_path(layout.output(name, "0001")).stat() for name in STATIONS}
    for name in STATIONS:
        _station(name, layout)
        now = manifest_path(layout.output(name, "0001")).stat()
        assert now.st_mtime_ns == made[name].st_mtime_ns
    assert sum(p.stat().st_size for p in layout.root.glob("*/**/*.npy")) < 1_000_000
    # What one withdraws the other one loses; pairs of three shards are those of before.
    withdraw(layout, ["0003"])
    remote_outputs.send()
    layout = on("other")
    assert load(layout).keys == ["0000", "0001", "0002"]
    assert not layout.duplicate_pairs("0003").exists() and not layout.dup_bitmap.exists()
    assert not [name for name in _digests(UPath(root)) if "0003" in name]
    pairs = "duplicate_pairs/0002.parquet"
    assert _digests(UPath(root)).keys() >= {pairs} and local.keys() >= {pairs}


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_a_store_that_fails_is_named_and_nothing_made_is_lost(
    root: str, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = on("one")
    register(layout, SAMPLE)
    remote_outputs.send()
    with monkeypatch.context() as patch:

        def put_file(*_: object, **__: object) -> None:
            raise OSError("the service is unavailable")

        patch.setattr(type(UPath(root).fs), "put_file", put_file)
        _station("metadata", layout)
        with pytest.raises(DownloadError, match=r"metadata/000\d.*cannot be written.*unavailable"):
            remote_outputs.send()
    assert UPath(root).fs.find(f"{UPath(root).path}/metadata") == []
    remote_outputs.send()
    assert len([*UPath(root).joinpath("metadata").iterdir()]) == 8
    # A file that somebody removed there is made again.
    UPath(root).joinpath("metadata/0001.json").unlink()
    layout = on("other")
    with pytest.raises(StaleOutputError, match=r"0001.json: missing. Delete .*manifest.json and"):
        require(layout.metadata("0001"), "metadata 0001", "full")
    _station("clip_features", layout)
    remote_outputs.send()
    UPath(root).joinpath("clip_features/0001.hashes.npy").unlink()
    path = on("third").clip_features("0001")
    with pytest.raises(StaleOutputError, match=r"//outputs.*0001.hashes.npy: lost or damaged"):
        open_npy(path)
    manifest_path(path).unlink()
    _station("clip_features", on("third"))
    remote_outputs.send()
    assert len(open_npy(on("other").clip_features("0001"))) == 500


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_what_is_lost_at_the_url_and_whole_here_is_sent_again(root: str, on: Machine) -> None:
    layout = on("one")
    register(layout, SAMPLE)
    for name in ("metadata", "clip_features"):
        _station(name, layout)
    remote_outputs.send()
    keys, url = load(layout).keys, UPath(root)
    before = _digests(url)
    outputs = [layout.clip_features(key) for key in keys]
    (url / "clip_features/0001.hashes.npy").unlink()
    (url / "clip_features/0002.hashes.npy").write_bytes(b"1")
    # Withdrawn there by another machine.
    for name in ("0003.hashes.npy", "0003.hashes.npy.manifest.json"):
        (url / "clip_features" / name).unlink()
    found = remote_outputs.mend(layout.root, outputs)
    assert found == ["clip_features/0001.hashes.npy", "clip_features/0002.hashes.npy"]
    assert remote_outputs.mend(layout.root, outputs) == []
    # What is made anew and not sent yet is not put below the former manifest.
    (url / "clip_features/0001.hashes.npy").unlink()
    path = manifest_path(outputs[1])
    os.utime(path, ns=(1, 1))
    assert remote_outputs.mend(layout.root, outputs) == []
    path.write_text(path.read_text())
    remote_outputs.send()
    assert remote_outputs.mend(layout.root, outputs) == found[:1]
    now = _digests(url)
    assert now == {name: digest for name, digest in before.items() if "features/0003" not in name}


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_a_store_that_is_away_is_not_asked_at_each_turn(
    root: str, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, asked = on("one"), []
    monkeypatch.setattr(remote_outputs, "FRESH", -1.0)
    monkeypatch.setattr(remote_outputs, "_unreached", {})
    with monkeypatch.context() as patch:

        def find(*_: object, **__: object) -> None:
            asked.append(1)
            raise TimeoutError("no answer")

        patch.setattr(type(UPath(root).fs), "find", find)
        for _ in range(3):
            with pytest.raises(DownloadError, match=r"outputs.*no answer") as said:
                remote_outputs.folder(root)
            assert may_pass(said.value)
        assert len(asked) == 1
        monkeypatch.setattr(remote_outputs, "PATIENCE", 0.0)
    assert remote_outputs.folder(root) == layout.root


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_sources_that_moved_are_compared_on_a_machine_that_holds_no_hashes(
    on: Machine, tmp_path: Path
) -> None:
    first = on("first")
    register(first, SAMPLE)
    for name in ("metadata", "clip_features"):
        _station(name, first)
    remote_outputs.send(first.root)
    others = tmp_path / "img_emb"
    shutil.copytree(SAMPLE.features, others)
    path = others / "img_emb_0001.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(BadInputError, match="row 0 is not that of the registered shard 0001"):
        move(on("second"), Source(others, SAMPLE.metadata))


def test_places_that_cannot_be_output_folders_are_refused(
    root: str, on: Machine, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="cannot be written there"):
        remote_outputs.folder("https://host/run")
    layout = on("one")
    among = Source(UPath(root) / "img_emb", UPath(root) / "snip_features")
    with pytest.raises(BadInputError, match="among these sources"):
        register(layout, among)
    register(layout, SAMPLE)
    for name in STATIONS:
        _station(name, layout)
    with pytest.raises(BadInputError, match="the output folder itself"):
        copy_out(layout, root)
    # A folder there of the name of the output folder is none of its outputs.
    other = UPath("memory://outputs/copy") / layout.root.name / "x.parquet"
    other.write_bytes(b"")
    copy_out(layout, "memory://outputs/copy", every=True)
    with pytest.raises(BadInputError, match="a copy that `snip publish` made"):
        remote_outputs.folder("memory://outputs/copy")
    assert remote_outputs.named(layout.dup_bitmap) == f"{root}/dup_bitmap"
    assert remote_outputs.named(tmp_path) == str(tmp_path)


def test_commands_on_three_machines_that_share_a_bucket(s3: str, tmp_path: Path) -> None:
    out = f"{s3}/commands/run"

    def snip(machine: str, *arguments: str) -> str:
        environment = os.environ | {remote_outputs.PLACE: str(tmp_path / machine)}
        command = [sys.executable, "-m", "snip_assets.cli", *arguments, "--out", out]
        ran = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    first = json.loads(snip("one", "dedup", "--limit-shards", "3", "--steps", "50", "--json"))
    assert first["rows"] == 1500
    whole = json.loads(snip("two", "dedup", "--json"))
    assert whole["rows"] == 2000 and whole["failed_checks"] == {}
    assert whole["outputs"]["report"] == f"{out}/dedup_report/index.html"
    # Dagster's own processes, and commands that read, on a machine that has made nothing.
    snip("three", "dagster", "job", "execute", "-j", "verify")
    assert json.loads(snip("three", "show", "982", "--json"))["kept"] is False
    assert '"published": true' in snip("three", "shards", "list", "--json")
    report = json.loads(snip("three", "report", "--json"))
    assert sum(p.stat().st_size for p in Path(report["page"]).parent.rglob("*.*")) > 2_000_000
    hits = json.loads(snip("three", "search", "--row", "982", "-k", "2", "--json"))
    assert [hit["row"] for hit in hits] == [393, 104]
    # The first one sees what the others made.
    again = json.loads(snip("one", "dedup", "--json"))
    assert (again["rows"], again["dropped"]) == (2000, whole["dropped"])
