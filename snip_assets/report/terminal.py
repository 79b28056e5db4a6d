"""What the terminal shows: progress bars, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from snip_assets.engine import progress


class _Bar:
    def __init__(self, bars: Progress, number: TaskID) -> None:
        self.bars, self.number = bars, number

    def advance(self, amount: int = 1) -> None:
        """Move on."""
        self.bars.advance(self.number, amount)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bars.stop_task(self.number)


class _Rate(ProgressColumn):
    """Units a second, averaged over the last seconds."""

    def render(self, task: RichTask) -> Text:
        """The rate, once there is one."""
        rate = task.finished_speed or task.speed
        return Text("" if not rate else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")


@contextmanager
def bars() -> Iterator[None]:
    """Show the engine's progress as bars on stderr; plain lines where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with progress.reporting(_lines(console)):
            yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
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
        console.print(f"{label}: {total:,} {unit}" if total else label, highlight=False)
        return _Line()

    return reporter


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    shown = Table(title=title, title_justify="left", header_style="bold", show_header=any(columns))
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(text, row))
    Console(soft_wrap=False).print(shown)


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
    print(json.dumps(value, indent=1, default=str))
