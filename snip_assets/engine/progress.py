"""Progress of long work, shown by whoever runs the engine (a bar, a log line, nothing)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""

    def close(self) -> None:
        """Say that the work is over."""


class _Silent:
    def advance(self, amount: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


Reporter = Callable[[str, int, str], Task]
_reporter: ContextVar[Reporter] = ContextVar("reporter", default=lambda *_: _Silent())


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Show progress through `reporter(label, total, unit)` inside this context."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def task(label: str, total: int, unit: str = "rows") -> Iterator[Task]:
    """Open a piece of work of `total` units."""
    current = _reporter.get()(label, total, unit)
    try:
        yield current
    finally:
        current.close()


def track(items: Iterable[T], label: str, total: int, unit: str = "shards") -> Iterator[T]:
    """Iterate and advance by one after each item."""
    with task(label, total, unit) as current:
        for item in items:
            yield item
            current.advance()
