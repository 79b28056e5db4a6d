"""Run the whole asset graph in this process, as `snip dedup` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from . import automation, home, partitions
from .assets.station import PROGRESS_TAG
from .definitions import build_defs
from .engine.errors import SnipError
from .engine.shards import Shard, load
from .resources import DataSet

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Outcome:
    """What a run of the graph did.

    Attributes
    ----------
    new
        Shards registered just before.
    seconds
        Name of an asset or check -> seconds it took.
    checks
        Results of the asset checks, by name: passed, and their metadata as plain values.
    """

    new: list[Shard]
    seconds: dict[str, float] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)


def sync(data: DataSet, limit: int = 0) -> list[Shard]:
    """Register new shards (the first `limit` of them, all when 0) with engine and Dagster."""
    new = partitions.register(data.layout, data.source, limit)
    with home.instance(data.layout) as instance:
        partitions.announce(instance, data.layout)
    return new


def materialize(
    data: DataSet, limit: int = 0, *, only_new: bool = False, train_again: bool = False
) -> Outcome:
    """Register what is new and materialise everything that is missing or stale.

    Parameters
    ----------
    limit
        Use this many shards at the most; 0 means all.
    only_new
        Work on the shards that are new only, and on what lies between shards and all of them.

    train_again
        Train net and index on all that is there, though nothing that they depend on has changed.

    Raises
    ------
    SnipError
        What a user can mend, as the engine said it.
    """
    # Before an instance is opened: what headers tell should be said at once.
    new = partitions.register(data.layout, data.source, limit)
    with home.instance(data.layout) as instance:
        partitions.announce(instance, data.layout)
        job = build_defs({"data": data}).resolve_job_def(automation.arrival.name)
        keys = [s.key for s in new] if only_new else load(data.layout).keys
        tags = automation.shard_range(data.layout, keys)
        with _engine_errors():
            result = job.execute_in_process(
                run_config=_run_config(train_again),
                instance=instance,
                tags={**tags, PROGRESS_TAG: "bars"},
            )
    return _outcome(new, result)


def _run_config(train_again: bool) -> dict[str, Any]:
    again = {"config": {"again": train_again}}
    return {**_QUIET, "ops": {"snip_model": again, "trained_index": again}}


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Let the engine's own error out of what Dagster wrapped around it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        seen: set[int] = set()
        # Errors that cross threads and event loops may come to name each other.
        while cause is not None and not isinstance(cause, SnipError):
            seen.add(id(cause))
            cause = cause.__cause__ or cause.__context__
            cause = None if id(cause) in seen else cause
        if cause is None:
            raise
        raise cause from None


def _outcome(new: list[Shard], result: dg.ExecuteInProcessResult) -> Outcome:
    outcome = Outcome(new)
    for event in result.all_events:
        if event.is_step_success and event.step_key:
            outcome.seconds[event.step_key] = event.step_success_data.duration_ms / 1000
    for check in result.get_asset_check_evaluations():
        values = {name: value.value for name, value in check.metadata.items()}
        said = {"passed": check.passed, "description": check.description}
        outcome.checks[check.check_name] = {**said, **values}
    return outcome
