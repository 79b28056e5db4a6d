"""Engines of SQLAlchemy for Dagster's SQLite files, kept from one event to the next.

For each event Dagster makes two or three engines: each opens its file anew, reads its schema and
compiles its statements, which is most of the time that an event takes; and a run over many shards
is made of events. Kept ones have SQLAlchemy's own pool for SQLite files. An engine is let go of
when its file is no longer the same, and does not outlive a fork.

Dagster's files have a write-ahead log, where `synchronous = NORMAL` saves a write to the disk for
each event. When the power fails, the last events may be missing then: what the disk holds is
recorded again by the next run (see `versions.unrecorded`).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event

_MODULES = (
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
)
# One a file: a few of the instance, and one of each run.
MOST = 32
_PREFIX = "sqlite:///"
# Url -> the file as it was, and its engine.
_engines: dict[str, tuple[tuple[int, int], Engine]] = {}


def install() -> None:
    """Have Dagster use `kept` in this process; where it makes engines otherwise, do nothing."""
    for name in _MODULES:
        module: Any = importlib.import_module(name)
        if getattr(module, "create_engine", None) is not None:
            module.create_engine = kept


def kept(url: str, **options: Any) -> Engine:
    """An engine as `sqlalchemy.create_engine` makes it; the same for a file that is there."""
    state = _state(url)
    if state is None:
        # Made with its tables first, by an engine that is not kept.
        return create_engine(url, **options)
    before = _engines.get(url)
    if before is not None and before[0] == state:
        return before[1]
    if before is not None or len(_engines) >= MOST:
        _let_go([url] if before is not None else list(_engines))
    options.pop("poolclass", None)
    engine = create_engine(url, **options)
    event.listen(engine, "connect", _relax)
    # Dagster disposes of an engine after each use.
    engine.dispose = _stay  # type: ignore[method-assign]
    _engines[url] = state, engine
    return engine


def _state(url: str) -> tuple[int, int] | None:
    """What tells a file on disk from another at its place; None if there is none."""
    if not url.startswith(_PREFIX):
        return None
    try:
        found = Path(url[len(_PREFIX) :]).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _relax(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")


def _stay(close: bool = True) -> None:
    """In place of `Engine.dispose`."""


def _let_go(urls: list[str]) -> None:
    for url in urls:
        # Another thread may have been first.
        if (held := _engines.pop(url, None)) is not None:
            Engine.dispose(held[1])


if hasattr(os, "register_at_fork"):  # A child must neither use nor close its parent's connections.
    _of_the_parent: list[dict[str, Any]] = []

    def _set_aside() -> None:
        _of_the_parent.append(dict(_engines))
        _engines.clear()

    os.register_at_fork(after_in_child=_set_aside)
