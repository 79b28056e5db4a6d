"""Commands that read or write single files and folders take urls for all of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from upath import UPath

from snip_assets import cli
from snip_assets.engine import remote_outputs
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.storage import working_copies
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

STORE = "memory://urls"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert _snip("dedup", "--out", out, "--steps", "50").exit_code == 0
    assert _snip("index", "export", out / "our.index", "--out", out).exit_code == 0
    return out


@pytest.fixture
def store(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UPath]:
    """The sources and the run's files at a url."""
    monkeypatch.setenv(remote_outputs.PLACE, str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    for name in ("_open", "_boxes"):
        monkeypatch.setattr(remote_outputs, name, {})
    monkeypatch.setattr(working_copies, "_open", {})
    root = UPath(STORE)
    for folder in (SAMPLE_FEATURES, SAMPLE_METADATA, run / "drop_list"):
        for path in folder.glob("*.[np]*"):
            (root / folder.name / path.name).write_bytes(path.read_bytes())
    for name in ("dup_bitmap/dup_bitmap.npy", "row_offsets.npy", "our.index"):
        (root / Path(name).name).write_bytes((run / name).read_bytes())
    (root / "net.safetensors").write_bytes((run / "snip_model/model.safetensors").read_bytes())
    yield root
    root.fs.store.clear()


def _snip(*arguments: Any) -> Any:
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if done.exit_code == 0:
        remote_outputs.send()
    return done


def _bytes(folder: Any) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".parquet"}


def test_bitmap_and_drop_lists_are_applied(store: UPath, run: Path, tmp_path: Path) -> None:
    bitmap = ["--bitmap", store / "dup_bitmap.npy", "--offsets", store / "row_offsets.npy"]
    done = _snip("apply-bitmap", store / "metadata", store / "clean", *bitmap)
    assert done.exit_code == 0 and f"{STORE}/clean" in done.stdout
    expected = _bytes(run / "deduped_metadata")
    assert _bytes(store / "clean") == expected
    lists = ["--drop-list", store / "drop_list"]
    done = _snip("apply", *lists, "--metadata", store / "metadata", "--out", store / "applied")
    assert done.exit_code == 0 and _bytes(store / "applied") == expected
    one = f"{STORE}/metadata/metadata_0000.parquet"
    for read in (store / "metadata", f"{STORE}//metadata", one):
        done = _snip("apply", *lists, "--metadata", read, "--out", f"{STORE}/metadata/")
        assert isinstance(done.exception, BadInputError)
        assert "would be written over" in str(done.exception)
    done = _snip("download", store / "got", "--metadata-url", store / "metadata", *bitmap)
    assert done.exit_code == 0 and _bytes(store / "got" / "metadata") == expected
    # What went there by other hands is sent again.
    (store / "clean" / "metadata_0001.parquet").unlink()
    assert _snip("apply-bitmap", store / "metadata", store / "clean", *bitmap).exit_code == 0
    assert _bytes(store / "clean") == expected
    # What has not changed is not fetched again; what has, is.
    kept = next((tmp_path / "work" / "inputs").glob("metadata-*/metadata_0001.parquet"))
    before = kept.stat().st_ino
    assert _snip("apply-bitmap", store / "metadata", store / "clean", *bitmap).exit_code == 0
    assert kept.stat().st_ino == before
    (store / "metadata" / kept.name).write_bytes(b"<html>")
    done = _snip("apply-bitmap", store / "metadata", store / "clean", *bitmap)
    assert "metadata_0001.parquet: an HTML page, not data" in str(done.exception)


def test_a_bitmap_comes_with_the_list_of_its_shards(store: UPath, run: Path) -> None:
    """As if the first shard had arrived last; its name does not tell."""
    shards = json.loads((run / "dup_bitmap" / "shards.json").read_text())["shards"]
    ends = np.cumsum([shard["rows"] for shard in shards])
    parts = np.split(np.load(run / "dup_bitmap" / "dup_bitmap.npy"), ends[:-1])
    listed = json.dumps({"shards": [*shards[1:], shards[0]]})
    np.save(bitmap := io.BytesIO(), np.concatenate([*parts[1:], parts[0]]))
    for folder, beside in (("one", ""), ("two/dup_bitmap", "..")):
        (store / folder / "dup_bitmap.npy").write_bytes(bitmap.getvalue())
        (store / folder / beside / "shards.json").resolve().write_text(listed)
        given = ["--bitmap", store / folder / "dup_bitmap.npy"]
        done = _snip("apply-bitmap", store / "metadata", store / "clean" / folder, *given)
        assert done.exit_code == 0
        assert _bytes(store / "clean" / folder) == _bytes(run / "deduped_metadata")


def test_errors_name_the_url_and_not_the_copy(
    store: UPath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "bad" / "dup_bitmap.bits").write_bytes(b"1")
    given = [store / "metadata", "clean", "--bitmap", store / "bad" / "dup_bitmap.bits"]
    monkeypatch.setattr(sys, "argv", ["snip", "apply-bitmap", *map(str, given)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert f"error: {STORE}/bad/dup_bitmap.bits: packed bits" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["s3://our.index", "hf:datasets/a/b/our.index", "gdrive:our.index"])
def test_places_that_no_file_can_have_are_refused(
    run: Path, tmp_path: Path, monkeypatch, to
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _snip("index", "export", to, "--out", run).exit_code == 2
    assert not [*tmp_path.iterdir()]


def test_what_an_earlier_command_sent_is_not_sent_again(store: UPath) -> None:
    bitmap = ["--bitmap", store / "dup_bitmap.npy", "--offsets", store / "row_offsets.npy"]
    assert _snip("apply-bitmap", store / "metadata", store / "clean", *bitmap).exit_code == 0
    store.fs.rm((store / "clean").path, recursive=True)
    one = store / "metadata" / "metadata_0001.parquet"
    assert _snip("apply-bitmap", one, store / "clean", *bitmap).exit_code == 0
    assert [*_bytes(store / "clean")] == [one.name]


def test_index_net_and_features_are_searched_and_verified(store: UPath, run: Path) -> None:
    data = ["--index", store / "our.index", "--model", store / "net.safetensors"]
    data += ["--features", store / "img_emb", "--metadata", store / "metadata"]
    done = _snip("search", "--row", 982, "-k", 3, *data, "--to", store / "hits.json", "--json")
    assert [hit["row"] for hit in json.loads(done.stdout)] == [393, 104, 1552]
    assert [hit["row"] for hit in json.loads((store / "hits.json").read_text())] == [393, 104, 1552]
    bitmap = ["--bitmap", store / "dup_bitmap.npy", "--to", store / "verified"]
    found = json.loads(_snip("verify", *bitmap, *data, "--json").stdout)
    assert (found["confirmed"], found["judged"]) == (551, 551)
    assert found["parquet"] == f"{STORE}/verified/pairs.parquet"
    assert (store / "verified" / "pairs.csv").exists()
    assert _snip("index", "export", store / "again.index", "--out", run).exit_code == 0
    assert (store / "again.index").read_bytes() == (run / "our.index").read_bytes()


def test_a_run_takes_a_net_and_is_planned_and_recut(store: UPath, run: Path) -> None:
    planned = json.loads(_snip("plan", store / "img_emb", "--json").stdout)
    assert (planned["rows"], planned["dim"]) == (2000, 512)
    sources = ["--features", store / "img_emb", "--metadata", store / "metadata"]
    out = f"{STORE}/run"
    done = _snip("dedup", *sources, "--out", out, "--model", store / "net.safetensors", "--json")
    assert json.loads(done.stdout)["rows"] == 2000
    recut = ["--max-distance", 0.05, "--out"]
    there = _snip("recut", out, *recut, f"{STORE}/cut", "--json")
    here = _snip("recut", run, *recut, run.parent / "cut", "--json")
    assert json.loads(there.stdout)["dropped"] == json.loads(here.stdout)["dropped"]
    done = _snip("apply-bitmap", store / "metadata", f"{STORE}/cut/drop_list/in", "--bitmap", store)
    assert "holds outputs of a run" in str(done.exception)
    assert _bytes(store / "cut" / "deduped_metadata") == _bytes(run.parent / "cut/deduped_metadata")
    shutil.rmtree(run.parent / "cut")
    (store / "img_emb" / "img_emb_0002.npy").write_bytes(b"<html>")
    done = _snip("plan", store / "img_emb")
    assert "img_emb_0002.npy: not an .npy file" in str(done.exception)
    done = _snip("verify", "--bitmap", store / "nothing.npy", "--out", out)
    assert f"{STORE}/nothing.npy: no such file" in str(done.exception)


def test_who_stops_a_command_does_not_wait_for_the_store(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from snip_assets import cli\n"
        "from snip_assets.engine import remote_outputs\n"
        "from snip_assets.engine.storage import transfers, files\n"
        "root = remote_outputs.folder('memory://b/out')\n"
        "def slow(path, place):\n"
        "    print('sent', flush=True)\n"
        "    time.sleep(1)\n"
        "transfers.to_remote = slow\n"
        "def app():\n"
        "    for n in range(100):\n"
        "        files.write_json(root / 'audit' / f'{n}.json', {})\n"
        "    raise SystemExit(130)\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    environment = {**os.environ, remote_outputs.PLACE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 130 and b"goes on from here" in done.stderr
    assert done.stdout.count(b"sent") < 50
