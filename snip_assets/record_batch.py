"""Records of many shards in one transaction, for Dagster's storage in SQLite and in PostgreSQL.

One by one a record takes SQLite 1.7 ms, and an arrival behind thousands of shards leaves thousands
of them (see `assets.duplicates.decisions`).
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import func, select

SIZE = 500
# Not public: where another version of Dagster lacks one, records are stored one by one.
_NEEDED = (
    *("run_connection", "index_transaction"),
    *("_event_to_row", "_store_asset_event_tags", "_store_asset_event"),
)


def log_together(
    context: dg.AssetExecutionContext, records: Sequence[dg.AssetMaterialization]
) -> None:
    """Log materialisations of shards in the body of an asset, as `log_event` does one by one.

    Parameters
    ----------
    records
        Their times are a millisecond apart, from now on: about as if written one by one.
    """
    storage, now = context.instance.event_log_storage, int(time.time() * 1000)
    # Dagster's UI tells the records of an asset apart by the millisecond; rounding moves none from
    # its middle to another.
    times = [(now + 1.5 + place) / 1000 for place in range(len(records))]
    entries = [_entry(context, *both) for both in zip(records, times, strict=True)]
    store = storage.store_event_batch
    if isinstance(storage, SqliteEventLogStorage) and all(hasattr(storage, n) for n in _NEEDED):
        store = partial(_store, storage)
    for start in range(0, len(entries), SIZE):
        store(entries[start : start + SIZE])


def _entry(
    context: dg.AssetExecutionContext, record: dg.AssetMaterialization, at: float
) -> EventLogEntry:
    step = context.get_step_execution_context()
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        job_name=step.job_name,
        step_handle=step.step.handle,
        node_handle=step.step.node_handle,
        step_kind_value=step.step.kind.value,
        logging_tags=step.event_tags,
        event_specific_data=StepMaterializationData(record),
        message=f"Recorded {record.asset_key.to_user_string()} of {record.partition}.",
        pid=os.getpid(),
    )
    return EventLogEntry(
        error_info=None,
        level=logging.DEBUG,
        user_message="",
        run_id=context.run.run_id,
        timestamp=at,
        step_key=step.step.key,
        job_name=step.job_name,
        dagster_event=event,
    )


def _store(storage: SqliteEventLogStorage, events: Sequence[EventLogEntry]) -> None:
    """Store materialisations of an asset by a run, in the order given.

    Dagster's own storage in PostgreSQL does the same; that in SQLite stores one after the other.
    """
    rows: list[dict[str, Any]] = [storage._event_to_row(event) for event in events]
    with storage.run_connection(events[0].run_id) as connection:
        connection.execute(SqlEventLogStorageTable.insert(), rows)
    # The index over all runs has each such record too.
    with storage.index_transaction() as connection:
        connection.execute(SqlEventLogStorageTable.insert(), rows)
        last = connection.execute(select(func.last_insert_rowid())).scalar_one()
        # Nobody else writes in a transaction that has begun to: the numbers follow one another.
        numbers = [*range(last - len(rows) + 1, last + 1)]
        storage._store_asset_event_tags(connection, events, numbers)
        storage._store_asset_event(connection, events[-1], last)
