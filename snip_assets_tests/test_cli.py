"""The command line on bad input: a clear message, the right exit code, nothing long begun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer

from snip_assets import cli
from snip_assets.commands import dagster_commands
from snip_assets.engine import stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

from .engine.station_tools import until_pairs

ROWS = 40
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="There is a GPU.")


@dataclass
class Small:
    """Two small shards in a folder, ready to be damaged."""

    root: Path

    @property
    def features(self) -> Path:
        return self.root / "img_emb"

    def npy(self, key: str) -> Path:
        return self.features / f"img_emb_{key}.npy"

    def parquet(self, key: str) -> Path:
        return self.root / "metadata" / f"metadata_{key}.parquet"

    def edit(self, key: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
        array = np.load(self.npy(key))
        changed = change(array)
        np.save(self.npy(key), array if changed is None else changed)

    def cut(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def small(tmp_path: Path) -> Small:
    made = Small(tmp_path / "data")
    made.features.mkdir(parents=True)
    (made.root / "metadata").mkdir()
    for key in ("0000", "0001"):
        np.save(made.npy(key), np.load(SAMPLE_FEATURES / f"img_emb_{key}.npy")[:ROWS])
        table = pq.read_table(SAMPLE_METADATA / f"metadata_{key}.parquet").slice(0, ROWS)
        pq.write_table(table, made.parquet(key))
    return made


@pytest.fixture
def snip(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["snip", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def _dedup(small: Small, out: Path) -> tuple[object, ...]:
    folders = ("--features", small.features, "--metadata", small.root / "metadata")
    return ("dedup", *folders, "--out", out)


def _nan(array: np.ndarray) -> None:
    array[7, 3] = np.nan


def _zero(array: np.ndarray) -> None:
    array[7] = 0


def _unreadable(small: Small) -> None:
    path = small.npy("0001")
    if os.geteuid() == 0:  # root reads everything: a folder in place of the file
        path.unlink()
        path.mkdir()
    else:
        path.chmod(0)


def _empty(small: Small) -> None:
    for key in ("0000", "0001"):
        small.npy(key).unlink()


DAMAGE: dict[str, tuple[Callable[[Small], object], str]] = {
    "missing metadata": (lambda s: s.parquet("0001").unlink(), "metadata_0001.parquet is missing"),
    "rows differ": (lambda s: s.edit("0001", lambda a: a[:-1]), "39 rows"),
    "NaN": (lambda s: s.edit("0001", _nan), "img_emb_0001.npy: row 7"),
    "zero row": (lambda s: s.edit("0001", _zero), "img_emb_0001.npy: row 7"),
    "dimension": (lambda s: s.edit("0001", lambda a: a[:, :-1]), "511 numbers a row"),
    "truncated npy": (lambda s: s.cut(s.npy("0001")), "img_emb_0001.npy"),
    "truncated parquet": (lambda s: s.cut(s.parquet("0001")), "metadata_0001.parquet"),
    "empty folder": (_empty, "no file named img_emb_"),
    "unreadable": (_unreadable, "img_emb_0001.npy"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_input_is_refused_with_its_cure(
    name: str, small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    damage, message = DAMAGE[name]
    damage(small)
    code, _, err = snip(*_dedup(small, tmp_path / "out"))
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "snip_model").exists()


def _damage_inside(path: Path) -> None:
    """Leave head and footer as they are."""
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)


@pytest.mark.parametrize("command", ["dedup", "check"])
def test_metadata_that_is_damaged_inside_is_named(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]], command: str
) -> None:
    out, folders = tmp_path / "out", _dedup(small, tmp_path / "out")[1:]
    assert snip("shards", "sync", *folders)[0] == 0
    _damage_inside(small.parquet("0001"))
    code, _, err = snip(command, "--out", out)
    assert code == 2 and "metadata_0001.parquet: cannot be read" in err and "Traceback" not in err


@pytest.mark.parametrize("out", ["", "img_emb", "metadata"])
def test_outputs_do_not_go_among_the_sources(
    small: Small, snip: Callable[..., tuple[int, str, str]], out: str
) -> None:
    before = sorted(small.root.rglob("*"))
    code, _, err = snip(*_dedup(small, small.root / out))
    assert code == 2 and "choose another output folder" in err
    assert sorted(small.root.rglob("*")) == before


def test_a_limit_below_what_is_registered_is_refused(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    assert snip("shards", "sync", *_dedup(small, tmp_path / "out")[1:])[0] == 0
    code, _, err = snip("dedup", "--out", tmp_path / "out", "--limit-shards", 1)
    assert code == 2 and "2 shards are registered, more than the limit of 1" in err


def test_ctrl_c_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, snip: Callable[..., tuple[int, str, str]]
) -> None:
    app = typer.Typer()

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    code, _, err = snip()
    assert code == 130 and "the same command again goes on from here" in err


def test_an_output_folder_of_another_data_set_is_refused(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "out"
    assert snip("shards", "sync", "--out", out)[0] == 0
    code, _, err = snip(*_dedup(small, out))
    assert code == 3
    assert "belongs to another data set" in err


def test_a_dagster_home_that_is_not_there_is_named(
    small: Small,
    tmp_path: Path,
    snip: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    code, _, err = snip(*_dedup(small, tmp_path / "out"))
    assert code == 2 and f"DAGSTER_HOME {tmp_path / 'gone'}: no such folder" in err


@pytest.mark.parametrize(
    "given",
    [
        ("--codec", "PQ9"),
        ("--model", "none.safetensors"),
        ("--model", __file__),
        ("--keep", "largest(none)"),
        ("--dim", "100"),
        pytest.param(("--device", "cuda"), marks=NO_GPU),
    ],
)
def test_settings_that_no_run_can_have_are_refused_once(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]], given: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    code, _, err = snip(*_dedup(small, out), *given)
    assert code == 2 and given[1].removeprefix("largest(").rstrip(")") in err
    # Not noted for commands that do not name them, and nothing was begun.
    assert not Layout(out).settings.exists() and not Layout(out).dagster_home.exists()


def test_an_output_folder_knows_its_data_set(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "out"
    assert snip("shards", "sync", *_dedup(small, out)[1:], "--limit-shards", 1)[0] == 0
    code, said, _ = snip("shards", "sync", "--out", out)
    assert code == 0 and "1 new shard, 2 in all" in said


@pytest.mark.parametrize("given", ["features", "metadata"])
def test_one_folder_is_not_taken_with_the_sample_s_other(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]], given: str
) -> None:
    folder = {"features": small.features, "metadata": small.root / "metadata"}[given]
    code, _, err = snip("shards", "sync", f"--{given}", folder, "--out", tmp_path / "out")
    other = {"features": "metadata", "metadata": "features"}[given]
    assert code == 2 and f"give --{other}" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing", ""])
def test_an_output_folder_that_cannot_be_is_refused(
    tmp_path: Path, snip: Callable[..., tuple[int, str, str]], place: str
) -> None:
    (tmp_path / "file").touch()
    code, _, err = snip("dedup", "--out", tmp_path / place if place else "")
    assert code == 2
    assert ("choose another output folder" if place else "it is empty") in err


def test_shards_are_listed_as_json(
    small: Small, tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    folders = _dedup(small, tmp_path / "out")[1:]
    assert snip("shards", "sync", *folders, "--limit-shards", 1)[0] == 0
    code, out, _ = snip("shards", "list", "--out", tmp_path / "out", "--json")
    assert code == 0
    assert [(s["key"], s["rows"]) for s in json.loads(out)] == [("0000", ROWS)]
    assert not json.loads(out)[0]["published"]


def test_one_station_by_itself_says_what_it_needs(
    tmp_path: Path, snip: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = snip("pairs", "--out", tmp_path / "nothing")
    assert code == 3
    assert "snip shards sync" in err


def test_every_command_has_help(snip: Callable[..., tuple[int, str, str]]) -> None:
    for name in ("dedup", "shards", "check", "train", "compress", "index", "pairs", "publish"):
        code, out, _ = snip(name, "--help")
        assert code == 0
        assert "--out" in out or "sync" in out


def test_other_settings_than_those_of_the_outputs_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "out")
    register(layout, Source(SAMPLE_FEATURES, SAMPLE_METADATA), ["0000"])
    run = stations.Run(layout, Settings(max_distance=0.08))
    until_pairs(run)
    variables = {"SNIP_OUT": str(layout.root), "SNIP_MAX_DISTANCE": "0.08"}
    dagster_commands._warn_of_settings(variables)
    assert capsys.readouterr().err == ""
    dagster_commands._warn_of_settings(variables | {"SNIP_MAX_DISTANCE": "0.1"})
    told = capsys.readouterr().err
    assert "trained_index, duplicate_pairs 0000 in" in told and "(max_distance 0.1," in told


@pytest.mark.parametrize(
    ("command", "takes"),
    [
        ("asset materialize --select snip_model", True),
        ("asset list", True),
        ("asset wipe --noprompt snip_model", False),
        ("asset --help", False),
        ("dev", True),
        ("schedule preview", True),
        ("schedule wipe", False),
        ("run list", False),
        ("", False),
    ],
)
def test_commands_of_dagster_get_the_module_where_they_take_one(command: str, takes: bool) -> None:
    assert dagster_commands._takes_module(command.split()) is takes


@pytest.mark.parametrize("command", ["apply-bitmap", "apply", "show", "recut"])
def test_a_file_where_a_folder_should_be_is_named(small: Small, tmp_path: Path, snip, command):
    file, rows = tmp_path / "file", tmp_path / "bitmap.npy"
    file.touch()
    np.save(rows, np.zeros(2 * ROWS, bool))
    columns = ("url", "kept_url")
    pq.write_table(pa.table({name: ["x"] for name in columns}), tmp_path / "drops.parquet")
    metadata = small.root / "metadata"
    arguments = {
        "apply-bitmap": (metadata, file, "--bitmap", rows),
        "apply": ("--drop-list", tmp_path / "drops.parquet", "--metadata", metadata, "--out", file),
        "show": (1, "--out", file),
        "recut": (file,),
    }
    code, _, err = snip(command, *arguments[command])
    assert code == 2
    assert str(file) in err and ("give another place" in err or "another output folder" in err)
    assert "Traceback" not in err
