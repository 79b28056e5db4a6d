"""`snip plan`: sizes as people write them, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from snip_assets import cli

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
