"""What every asset has in common: its policy, how errors and progress reach Dagster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from snip_assets.dead_runs import tag
from snip_assets.engine import progress, remote_outputs
from snip_assets.engine.errors import SnipError, may_pass
from snip_assets.engine.storage.files import CODE_VERSION
from snip_assets.partitions import backfill_policy, chosen

__all__ = [
    "CODE_VERSION",
    "HEAVY",
    "PROGRESS_TAG",
    "Training",
    "backfill_policy",
    "chosen",
    "station",
]

# Pool of the stations that plan with all of `memory_gb`: one at a time (see dagster.yaml).
HEAVY = "memory"
# Set by a caller in the same process that shows bars of its own.
PROGRESS_TAG = "snip/progress"
_RETRIES, _WAIT = 2, 10.0
_EVERY = 10.0


class Training(dg.Config):
    """Whether to train what is trained already."""

    again: bool = Field(
        False,
        description="Train now on the shards that are there, though neither settings nor code "
        "have changed; what depends on it is made again after it.",
    )


@contextmanager
def station(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Run a station of the engine: progress to the log, errors with their cure.

    What a user must mend fails at once, without a retry; a fault of the disk or network that may
    pass is tried twice again.
    """
    tag(context)
    started = time.monotonic()
    if context.run.tags.get(PROGRESS_TAG):
        shown: AbstractContextManager[Any] = progress.task(context.op_def.name, 0, "")
    else:
        shown = progress.reporting(_Log(context).open)
    try:
        with shown:
            yield
        # Before Dagster starts what follows, perhaps on another machine.
        remote_outputs.send()
        seconds = time.monotonic() - started
        context.log.info(f"{context.op_def.name}: done in {seconds:.1f} s")
    except (SnipError, OSError) as error:
        # Of a step whose retries are used up, Dagster would hide the error behind its own.
        if may_pass(error) and context.op_execution_context.retry_number < _RETRIES:
            raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=_WAIT) from error
        if isinstance(error, SnipError):
            raise dg.Failure(str(error), allow_retries=False) from error
        raise


class _Log:
    """Progress as a line in the log of the run, every ten seconds."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self.log = context.log

    def open(self, label: str, total: int, unit: str) -> progress.Task:
        """Begin a piece of work."""
        return _LoggedTask(self.log, label, total, unit)


class _LoggedTask:
    def __init__(self, log: dg.DagsterLogManager, label: str, total: int, unit: str) -> None:
        self.log, self.label, self.total, self.unit = log, label, total, unit
        self.done, self.said = 0, time.monotonic()

    def advance(self, amount: int = 1) -> None:
        """Count, and log when the last line is ten seconds old."""
        self.done += amount
        if time.monotonic() - self.said >= _EVERY:
            self.said = time.monotonic()
            self.log.info(f"{self.label}: {self.done:,} of {self.total:,} {self.unit}")

    def close(self) -> None:
        """Nothing to say: the result follows."""
