"""Run the whole asset graph in this process, as `snip dedup` does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError, DagsterExecutionInterruptedError

from . import automation, checks, home, partitions, versions
from .assets.station import PROGRESS_TAG
from .dead_runs import MACHINE_TAG, bury, machine
from .definitions import build_defs
from .engine import stations
from .engine.errors import SnipError, causes
from .engine.shards import Shard, load
from .engine.stretches import reach
from .noted_settings import noting
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

    def add(self, result: dg.ExecuteInProcessResult) -> None:
        """Take in a run."""
        for event in result.all_events:
            if event.is_step_success and event.step_key:
                self.seconds[event.step_key] = event.step_success_data.duration_ms / 1000
        for check in result.get_asset_check_evaluations():
            values = {name: value.value for name, value in check.metadata.items()}
            said = {"passed": check.passed, "description": check.description}
            self.checks[check.check_name] = {**said, **values}


def sync(data: DataSet, limit: int = 0) -> list[Shard]:
    """Register new shards (the first `limit` of them, all when 0) with engine and Dagster."""
    new = partitions.register(data.layout, data.source, limit)
    with home.instance(data.layout) as instance:
        partitions.announce(instance, data.layout)
    return new


def materialize(data: DataSet, limit: int = 0, *, train_again: bool = False) -> Outcome:
    """Register what is new and materialise everything that is missing or stale.

    One run of the job `arrival` where this concerns all shards. Else one without the outputs over
    the shards that it concerns, then one of `publish` over those that were decided otherwise:
    each shard of a run costs Dagster some 5 ms an asset, whether there is something to do or not.

    Parameters
    ----------
    limit
        Use this many shards at the most; 0 means all.
    train_again
        Train net and index on all that is there, though nothing that they depend on has changed.

    Raises
    ------
    SnipError
        What a user can mend, as the engine said it.
    """
    # Before Dagster is opened, which takes a while: malformed shards are refused at once.
    outcome = Outcome(partitions.register(data.layout, data.source, limit))
    # Refused before it is noted: later runs would take over a net or a rule that is not there.
    stations.require_named(data.run())
    with noting(data.layout, data.settings):
        _work(data, outcome, train_again)
    return outcome


def _work(data: DataSet, outcome: Outcome, train_again: bool) -> None:
    with home.instance(data.layout) as instance:
        partitions.announce(instance, data.layout)
        # No daemon need run: a killed run must not keep this one waiting.
        bury(instance)
        defs, every = build_defs({"data": data}), load(data.layout).keys
        # A daemon cannot start such a run again, and would say that it will.
        own = {PROGRESS_TAG: "bars", MACHINE_TAG: machine(), "dagster/max_retries": "0"}

        def work(job: str, keys: list[str], assets: Sequence[str] = (), **config: Any) -> None:
            definition = defs.resolve_job_def(job)
            if assets:
                # Of assets alone, Dagster would take all checks, and so read all outputs again.
                definition = definition.get_subset(
                    asset_selection={dg.AssetKey(name) for name in assets},
                    asset_check_selection=set(checks.keys_of(assets, sources=True)),
                )
            run_id = str(uuid.uuid4())
            with _engine_errors(), _failed_checks(instance, run_id):
                result = definition.execute_in_process(
                    run_config={**_QUIET, **config},
                    instance=instance,
                    tags={**automation.shard_range(data.layout, keys), **own},
                    run_id=run_id,
                )
            outcome.add(result)

        again = {"config": {"again": train_again}}
        training = {"snip_model": again, "trained_index": again}
        todo = {*stations.unfinished(data.run()), *versions.unrecorded(instance, data)}
        keys = every if train_again else reach(every, todo)
        if keys == every:
            work(automation.arrival.name, keys, ops=training)
        else:
            most = (*automation.INGEST, *automation.TRAIN, *automation.DEDUP)
            work(automation.arrival.name, keys, most, ops=training)
            todo = {
                *stations.unpublished(data.run(), every),
                *versions.unpublished(instance, every),
            }
            work(automation.publish.name, reach(every, todo))


class FailedCheckError(SnipError):
    """A blocking check found an output wrong; nothing that follows it was made."""

    exit_code = 3


@contextmanager
def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Say of a blocking check that failed what it found: Dagster tells its name alone."""
    try:
        yield
    except DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None
    except DagsterAssetCheckFailedError as error:
        said = []
        kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
        for entry in instance.all_logs(run_id, of_type=kind):
            check = entry.dagster_event.asset_check_evaluation_data if entry.dagster_event else None
            if check and not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
                asset = check.asset_key.to_user_string()
                why = str(check.description).rstrip(".")
                said.append(f"check {check.check_name} of {asset} failed: {why}")
        raise FailedCheckError(
            f"{'; '.join(said)}. What follows was not made. The section `A check is red` of "
            "docs/operations.md says what to do."
        ) from error


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Let the engine's own error out of what Dagster wrapped around it."""
    try:
        yield
    except Exception as error:
        cause = next((c for c in causes(error) if isinstance(c, SnipError)), None)
        if cause is None:
            raise
        raise cause from None
