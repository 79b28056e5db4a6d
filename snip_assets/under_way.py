"""What is queued or at work in Dagster, so that sensors do not ask for the same work twice."""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

_RUNS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_BACKFILLS = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]


def under_way(instance: dg.DagsterInstance, jobs: Collection[str], assets: Collection[str]) -> str:
    """A run or backfill under way that makes what a sensor would ask for, in words.

    Parameters
    ----------
    jobs
        Names of jobs whose runs count, and whose backfills.
    assets
        Names of assets: runs count that materialise one of them without a job, as the UI, its
        backfills and `dagster asset materialize` do; and backfills, also between two of their runs.

    Returns
    -------
    Empty when there is none.
    """
    wanted = {dg.AssetKey(name) for name in assets}
    for job in (*jobs, IMPLICIT_ASSET_JOB_NAME):
        for run in instance.get_runs(dg.RunsFilter(job_name=job, statuses=_RUNS)):
            if job in jobs or wanted & (run.asset_selection or set()):
                return f"run {run.run_id[:8]}"
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=_BACKFILLS)):
        if backfill.job_name in jobs or wanted & {*(backfill.asset_selection or ())}:
            return f"backfill {backfill.backfill_id}"
    return ""
