"""Runs whose process is gone: Dagster itself does not notice for processes of this machine."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher

# Tag of a run that was not launched by a code server: where its process is.
MACHINE_TAG = "snip/machine"
# Set by who starts a process whose runs are to be tagged so.
VARIABLE = "SNIP_TAG_RUNS"
# Seconds by which the clocks of the system and of the events may differ.
TOLERANCE = 5.0


def machine() -> str:
    """Host, start of its system, namespace of processes: where a number means a process."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    return f"{socket.gethostname()}/{boot}/{space}"


def bury(instance: dg.DagsterInstance, *, launched: bool = False) -> tuple[int, int]:
    """Mark runs as failed whose process is gone (killed, out of memory, a restart).

    Else their place in a pool would stay taken, and the next run wait for ever. A run of another
    machine, or of another container, is left alone: its process cannot be seen from here.

    Parameters
    ----------
    launched
        Look at runs without `MACHINE_TAG` too: those that this code server has launched.

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
        run = record.dagster_run
        place = run.tags.get(MACHINE_TAG)
        if place is None and not launched:
            continue
        pid, told = _process_of(instance, run.run_id)
        # Killed before it told its process: Dagster's own limit for starting is for that.
        if pid is not None and _gone(place, pid, told):
            instance.report_run_failed(
                run,
                f"Its process ({pid}) is gone: killed, out of memory, or its machine or code "
                "server was restarted. Outputs are whole or absent; a new run goes on from there.",
            )
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            buried += 1
    return len(records), buried


def _gone(place: str | None, pid: int, told: float) -> bool:
    if place is None or place == machine():
        return not lives(pid, told)
    (host, boot, _), (own_host, own_boot, _) = place.split("/"), machine().split("/")
    return host == own_host and boot != own_boot


def _process_of(instance: dg.DagsterInstance, run_id: str) -> tuple[int | None, float]:
    """The process of a run, and when the run said so."""
    for event in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        data = event.dagster_event.engine_event_data if event.dagster_event else None
        if data is not None and "pid" in data.metadata:
            return int(str(data.metadata["pid"].value)), event.timestamp
    return None, 0.0


def lives(pid: int, since: float) -> bool:
    """Whether a process runs that was there at a moment (numbers are used again)."""
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and process.create_time() <= since + TOLERANCE
    except psutil.NoSuchProcess:
        return False


def tag(context: dg.AssetExecutionContext) -> None:
    """Note where the process of a run is, where who started it has asked for that."""
    if os.environ.get(VARIABLE) and MACHINE_TAG not in context.run.tags:
        context.instance.add_run_tags(context.run.run_id, {MACHINE_TAG: machine()})
