"""Engines of SQLAlchemy for Dagster's SQLite files, kept from one event to the next.

For each event Dagster makes an engine, which compiles its statements anew: half of the time that
an event takes, and a run over many shards is made of events. A kept one still opens a connection
each time, so threads and processes share none.
"""

from __future__ import annotations

import importlib
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

_MODULES = (
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
)
# One a file: a few of the instance, and one of each run.
MOST = 64
_engines: dict[str, Engine] = {}


def keep() -> None:
    """Let Dagster use kept engines in this process; where it makes them otherwise, do nothing."""
    for name in _MODULES:
        module: Any = importlib.import_module(name)
        if getattr(module, "create_engine", None) is not None:
            module.create_engine = kept


def kept(url: str, **options: Any) -> Engine:
    """An engine as `sqlalchemy.create_engine` makes it, for SQLite files the same each time."""
    if not url.startswith("sqlite:///") or options.get("poolclass") is not NullPool:
        return create_engine(url, **options)
    key = f"{url} {sorted(options.get('connect_args', {}).items())}"
    if (engine := _engines.get(key)) is None:
        if len(_engines) >= MOST:
            _engines.clear()
        engine = _engines[key] = create_engine(url, **options)
    return engine
