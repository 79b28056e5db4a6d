"""Runs whose process is gone: which are marked as failed, and which are left alone."""

from __future__ import annotations

import os
import subprocess
import time

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from snip_assets import dead_runs, sensors


def test_a_process_lives_only_if_it_is_the_one_that_was_there() -> None:
    assert dead_runs.lives(os.getpid(), time.time())
    assert not dead_runs.lives(os.getpid(), 1000.0)
    child = subprocess.Popen(["true"])
    time.sleep(0.2)
    assert not dead_runs.lives(child.pid, time.time())
    child.wait()
    assert not dead_runs.lives(child.pid, time.time())


@pytest.mark.parametrize(
    ("host", "boot", "space", "dead"),
    [
        ("", "", "", True),
        ("", "", "x", False),
        ("", "x", "x", True),
        ("x", "x", "x", False),
        ("x", "", "", False),
    ],
)
def test_a_run_of_another_machine_or_container_is_left_alone(
    host: str, boot: str, space: str, dead: bool
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    own = dead_runs.machine().split("/")
    place = "/".join(one + more for one, more in zip(own, (host, boot, space), strict=True))
    with dg.DagsterInstance.local_temp() as instance:
        tags = {dead_runs.MACHINE_TAG: place}
        run = dg.DagsterRun(job_name="dedup", status=dg.DagsterRunStatus.STARTED, tags=tags)
        instance.add_run(run)
        told = EngineEventData({"pid": dg.MetadataValue.text(str(gone.pid))})
        instance.report_engine_event("Executing steps", run, told)
        for launched in (False, True):
            assert dead_runs.bury(instance, launched=launched) == (1, int(dead))
            if dead:
                break


def test_runs_whose_process_is_gone_are_failed_also_while_they_start() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with dg.DagsterInstance.local_temp() as instance:

        def add(status: dg.DagsterRunStatus, pid: int | None) -> str:
            run = dg.DagsterRun(job_name="arrival", status=status)
            instance.add_run(run)
            if pid is not None:
                told = EngineEventData({"pid": dg.MetadataValue.text(str(pid))})
                instance.report_engine_event("Started process", run, told)
            return run.run_id

        starting, started = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED
        dead = [add(starting, gone.pid), add(started, gone.pid)]
        alive = [add(starting, os.getpid()), add(started, os.getpid()), add(starting, None)]
        told = sensors.dead_runs(dg.build_sensor_context(instance))
        assert "5 runs at work, 2 dead" in str(told)
        statuses = {r.run_id: r.status for r in instance.get_runs()}
        assert [statuses[r] for r in dead] == [dg.DagsterRunStatus.FAILURE] * 2
        assert [statuses[r] for r in alive] == [starting, started, starting]


def test_a_dead_run_gives_its_place_in_the_pool_to_the_next() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with dg.DagsterInstance.local_temp() as instance:
        pools = instance.event_log_storage
        pools.set_concurrency_slots("memory", 1)

        def claims(run_id: str) -> bool:
            return pools.claim_concurrency_slot("memory", run_id, "snip_index").is_claimed

        dead = dg.DagsterRun(job_name="arrival", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(dead)
        told = EngineEventData({"pid": dg.MetadataValue.text(str(gone.pid))})
        instance.report_engine_event("Started process", dead, told)
        assert claims(dead.run_id) and not claims("next")
        sensors.dead_runs(dg.build_sensor_context(instance))
        assert claims("next")
