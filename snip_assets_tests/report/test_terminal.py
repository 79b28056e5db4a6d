"""Bars on a terminal that is one."""

from __future__ import annotations

import os
import pty
import sys
import time
from pathlib import Path

import pytest

from snip_assets.engine import progress
from snip_assets.report import terminal


def test_bars_are_seen_while_a_step_turns_stderr_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    with open(slave, "w") as stream, open(tmp_path / "step.err", "wb") as file:
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.bars():
            os.dup2(file.fileno(), slave)
            with progress.task("join", 4000, "rows") as task:
                task.advance(1000)
                time.sleep(0.3)
            with progress.task("hash", 10, "rows") as task:
                task.advance(10)
    seen = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "1,000 of 4,000 rows" in seen
    assert (tmp_path / "step.err").read_bytes() == b""
    # What was quick leaves no line.
    assert "hash: 10 rows in" not in seen


def test_texts_of_others_do_not_steer_the_terminal() -> None:
    line = {"row": 1234, "caption": "\x1b]0;owned\x07\x1b[31m[red]x[/red]", "distance": 0.5}
    row, caption, distance = terminal.cells(line)
    assert (row, distance) == ("1234", 0.5)
    assert caption == " ]0;owned  [31m\\[red]x\\[/red]"


def test_texts_inside_of_lists_and_structs_neither(capsys: pytest.CaptureFixture[str]) -> None:
    line = {"tags": ["[/b]"], "of": {"a": "[red]x"}, "raw": b"[/q]\x1b", "group": "[/i]"}
    terminal.table("Metadata", list(line), [terminal.cells(line)])
    out = capsys.readouterr().out
    assert all(text in out for text in ("['[/b]']", "[red]x", "[/q]\\x1b", "[/i]"))


def test_a_table_in_a_file_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "x" * 300
    terminal.table("A longer title than the table", ["name"], [[long]])
    assert long in capsys.readouterr().out
