"""Records of materialised shards, many in one transaction.

One by one a record takes SQLite 1.5 ms, and an arrival behind thousands of shards leaves thousands
of them (see `assets.duplicates.decisions`). Dagster hands such records over together if it is told
to, and its storage in PostgreSQL writes them so; that in SQLite does not, so it learns it here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, generate_event_batch_id
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import func, select

# Dagster's own variable, unset as it comes: how many of a step's records are written together.
VARIABLE, SIZE = "DAGSTER_EVENT_BATCH_SIZE", 500


def install() -> None:
    """Have Dagster write the records of a step together in this process and in its children."""
    os.environ.setdefault(VARIABLE, str(SIZE))
    # Unless a later version of Dagster has come to do it.
    if SqliteEventLogStorage.store_event_batch is SqlEventLogStorage.store_event_batch:
        SqliteEventLogStorage.store_event_batch = _store_together  # type: ignore[assignment,method-assign]


def log_together(
    context: dg.AssetExecutionContext, records: Iterable[dg.AssetMaterialization]
) -> None:
    """Log materialisations in the body of an asset, as `log_event` does one by one."""
    step, batch, some = context.get_step_execution_context(), generate_event_batch_id(), [*records]
    for place, record in enumerate(some, 1):
        last = place == len(some)
        DagsterEvent.asset_materialization(step, record, DagsterEventBatchMetadata(batch, last))


def _store_together(self: SqliteEventLogStorage, events: Sequence[EventLogEntry]) -> None:
    """Store the events of a run, in the order given."""
    kinds = {event.dagster_event_type for event in events}
    runs = {event.run_id for event in events}
    if kinds != {dg.DagsterEventType.ASSET_MATERIALIZATION} or len(runs) != 1:
        for event in events:
            self.store_event(event)
        return
    rows: list[dict[str, Any]] = [self._event_to_row(event) for event in events]
    with self.run_connection(runs.pop()) as connection:
        connection.execute(SqlEventLogStorageTable.insert(), rows)
    # Dagster's index over all runs, which has each such record too.
    with self.index_transaction() as connection:
        connection.execute(SqlEventLogStorageTable.insert(), rows)
        last = connection.execute(select(func.last_insert_rowid())).scalar_one()
        # Nobody else writes in a transaction that has begun to: the numbers follow one another.
        numbers = [*range(last - len(rows) + 1, last + 1)]
        self._store_asset_event_tags(connection, events, numbers)
        latest = {row["asset_key"]: k for k, row in enumerate(rows)}
        for k in latest.values():
            self._store_asset_event(connection, events[k], numbers[k])
