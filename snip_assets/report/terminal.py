"""What the terminal shows: progress bars, tables, JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Task as RichTask
from rich.table import Column, Table
from rich.text import Text

from snip_assets.engine import progress
from snip_assets.engine.wording import counted

from .harmless import shorten

_IDS = ("row", "row_in_shard", "group", "representative", "kept_row", "earlier_row")
_UNLIMITED = 10_000
# Work that took less leaves no line behind.
_WORTH_A_LINE = 1.0


class _Bar:
    def __init__(self, bars: Progress, number: TaskID) -> None:
        self.bars, self.number = bars, number

    def advance(self, amount: int = 1) -> None:
        """Move on."""
        self.bars.advance(self.number, amount)

    def close(self) -> None:
        """Make room: thousands of shards have a bar each. What took long leaves a line."""
        self.bars.stop_task(self.number)
        task = self.bars.tasks[self.bars.task_ids.index(self.number)]
        seconds, done = task.elapsed or 0.0, task.completed
        self.bars.remove_task(self.number)
        if seconds >= _WORTH_A_LINE and done and done >= (task.total or 0):
            self.bars.print(
                f"{task.description}: {_units(done, task.fields['unit'])} in {_clock(seconds)}, "
                f"{_rate(done / seconds)}",
                highlight=False,
            )


def _units(count: float, unit: str) -> str:
    return counted(round(count), unit.removesuffix("s"))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


class _Done(ProgressColumn):
    """How many of how many."""

    def render(self, task: RichTask) -> Text:
        """Thousands apart, so that the digits can be read."""
        of = f" of {task.total:,.0f}" if task.total else ""
        if not (of or task.completed):
            return Text("")
        return Text(f"{task.completed:,.0f}{of} {task.fields['unit']}")


class _Rate(ProgressColumn):
    """Units a second, averaged over the last seconds."""

    def render(self, task: RichTask) -> Text:
        """The rate, once there is one."""
        return Text(_rate(task.speed) if task.speed else "")


class _Left(ProgressColumn):
    """The time that is left, at that rate."""

    max_refresh = 0.5

    def render(self, task: RichTask) -> Text:
        """The time, once there is a rate."""
        left = task.time_remaining
        return Text("" if left is None or not task.total else f"{_clock(left)} left")


@contextmanager
def _own_stderr() -> Iterator[Console]:
    """A console that stays what it is while Dagster turns stderr into a file, during a step."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        # No file of the system: a notebook, or a test that captures.
        yield Console(stderr=True)
        return
    with open(number, "w", encoding=sys.stderr.encoding, errors="replace") as file:
        yield Console(file=file)


@contextmanager
def bars() -> Iterator[None]:
    """Show the engine's progress as bars on stderr; plain lines where that is no terminal."""
    with _own_stderr() as console:
        if not console.is_terminal:
            with progress.reporting(_lines(console)):
                yield
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(min_width=24, no_wrap=True)),
            BarColumn(),
            _Done(),
            _Rate(),
            TimeElapsedColumn(),
            _Left(),
        )
        with Progress(*columns, console=console) as shown:

            def reporter(label: str, total: int, unit: str) -> progress.Task:
                return _Bar(shown, shown.add_task(label, total=total or None, unit=unit))

            with progress.reporting(reporter):
                yield


class _Line:
    def advance(self, amount: int = 1) -> None:
        """Say nothing: one line a piece of work is enough for a log."""

    def close(self) -> None:
        """Say nothing."""


def _lines(console: Console) -> progress.Reporter:
    def reporter(label: str, total: int, unit: str) -> progress.Task:
        console.print(f"{label}: {_units(total, unit)}" if total else label, highlight=False)
        return _Line()

    return reporter


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right, names at the left in one piece where there is room.

    In a file or a pipe a line is as long as it must be.
    """
    limited = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(soft_wrap=False, width=None if limited else _UNLIMITED)
    shown = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        show_header=any(columns),
        min_width=min(len(title), console.width),
    )
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(text, row))
    if rows and max(len(text(row[0])) for row in rows) <= console.width // 2:
        shown.columns[0].no_wrap = True
    console.print(shown)


def cells(line: Mapping[str, Any]) -> list[Any]:
    """Values by column, for a table of rows.

    Texts come from the web: neither markup nor what steers a terminal may act. Row ids are names,
    not amounts.
    """
    return [
        v
        if v is None or (isinstance(v, (int, float)) and k not in _IDS)
        else escape(shorten(str(v)))
        for k, v in line.items()
    ]


def text(value: Any) -> str:
    """A value as people read it: thousands apart, three decimals, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print JSON on stdout and nothing else."""
    print(json.dumps(_plain(value), indent=1, default=str))


def _plain(value: Any) -> Any:
    """The same, null in place of what JSON has no word for: NaN and the infinite."""
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
