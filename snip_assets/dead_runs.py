"""Runs whose process is gone: Dagster itself does not notice for processes of this machine."""

from __future__ import annotations

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher


def bury(instance: dg.DagsterInstance) -> tuple[int, int]:
    """Mark runs as failed whose process is gone (killed, out of memory, a restart).

    Else their place in a pool would stay taken, and the next run wait for ever.

    Returns
    -------
    How many runs were said to be at work, and how many of them were dead.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return 0, 0
    at_work = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    records = instance.get_run_records(dg.RunsFilter(statuses=at_work))
    buried = 0
    for record in records:
        pid, told = _process_of(instance, record.dagster_run.run_id)
        # Killed before it told its process: Dagster's own limit for starting is for that.
        if pid is not None and not lives(pid, told):
            instance.report_run_failed(
                record.dagster_run,
                f"Its process ({pid}) is gone: killed, out of memory, or its machine or code "
                "server was restarted. Outputs are whole or absent; a new run goes on from there.",
            )
            instance.event_log_storage.free_concurrency_slots_for_run(record.dagster_run.run_id)
            buried += 1
    return len(records), buried


def _process_of(instance: dg.DagsterInstance, run_id: str) -> tuple[int | None, float]:
    """The process of a run, and when the run said so."""
    for event in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        data = event.dagster_event.engine_event_data if event.dagster_event else None
        if data is not None and "pid" in data.metadata:
            return int(str(data.metadata["pid"].value)), event.timestamp
    return None, 0.0


def lives(pid: int, since: float, tolerance: float = 5.0) -> bool:
    """Whether a process runs that was there at a moment (numbers are used again)."""
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and process.create_time() <= since + tolerance
    except psutil.NoSuchProcess:
        return False
