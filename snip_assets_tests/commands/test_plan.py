"""`snip plan`: sizes as people write them, and what is none."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from upath import UPath

from snip_assets import cli
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.plan import headers

ROWS = ("plan", "--rows", "1000000", "--raw-dim", "96", "--dim", "16", "--hidden", "32")


def _plan(out: Path, *arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, [*ROWS, "--out", str(out), *arguments])
    return found.exit_code, found.output


@pytest.mark.parametrize(("text", "gib"), [("32GB", 32), ("1.5 TiB", 1536), ("8", 8)])
def test_a_machine_as_it_is_told(tmp_path: Path, text: str, gib: float) -> None:
    code, output = _plan(tmp_path, "--memory", text, "--cores", "16", "--disk", "2", "--json")
    found = json.loads(output)
    assert code == 0
    assert (found["memory_gb"], found["cores"], found["disk_gb_per_s"]) == (gib, 16, 2)


def test_what_is_no_size_is_refused(tmp_path: Path) -> None:
    code, output = _plan(tmp_path, "--memory", "much")
    assert code == 2
    assert "32GB" in output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rows", "99999999999999999999"), ("--raw-dim", "0"), ("--shards", "-1"),
        ("--shards", "99999999999"), ("--disk", "nan"), ("--disk", "-2"), ("--gpu-tflops", "nan"),
        ("--disk", "inf"),
    ],
)  # fmt: skip
def test_what_no_machine_or_data_set_has_is_refused(
    tmp_path: Path, option: str, value: str
) -> None:
    code, output = _plan(tmp_path, option, value)
    assert code == 2
    assert option in output


@pytest.mark.parametrize("at_a_url", [False, True])
def test_features_that_a_run_would_refuse_are_not_planned_for(
    tmp_path: Path, at_a_url: bool
) -> None:
    folder = UPath(f"memory://planned{tmp_path}") if at_a_url else tmp_path

    def save(number: int, rows: np.ndarray) -> None:
        file = io.BytesIO()
        np.save(file, rows)
        (folder / f"img_emb_{number}.npy").write_bytes(file.getvalue())

    x = np.ones((3, 4), np.float16)
    save(0, x)
    for other, said in ((x.astype(np.int8), "int8"), (x[:, :2], "2 numbers"), (x[0], "(4,)")):
        save(1, other)
        with pytest.raises(BadInputError, match=rf"img_emb_1.npy: .*{re.escape(said)}"):
            headers(folder)
    save(1, x)
    assert headers(folder) == (6, 4, 2, 2)
