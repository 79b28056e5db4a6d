"""The shards as Dagster partitions. Registration happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

import dagster as dg

from .engine import remote_outputs
from .engine import shards as engine_shards
from .engine.errors import BadInputError, StaleOutputError
from .engine.layout import Layout
from .engine.shards import Shard, Source
from .engine.withdraw import withdraw as engine_withdraw
from .engine.withdraw import withdrawable
from .options import variable

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"

shards = dg.DynamicPartitionsDefinition(name="shards")


def backfill_policy() -> dg.BackfillPolicy:
    """One run for all chosen shards, or SNIP_SHARDS_PER_RUN of them a run.

    A single run decodes each inverted list once for all its shards and lets
    `--partition-range` work; many runs bound what one failure costs.
    """
    size = variable("SNIP_SHARDS_PER_RUN", 0, int)
    return dg.BackfillPolicy.multi_run(size) if size > 0 else dg.BackfillPolicy.single_run()


def register(layout: Layout, source: Source, limit: int = 0) -> list[Shard]:
    """Register the shards that are new in the source with the engine.

    Parameters
    ----------
    limit
        Have this many shards at the most; 0 means all.

    Returns
    -------
    The new shards.

    Raises
    ------
    BadInputError
        A shard is malformed, changed or gone; or more than `limit` are registered.
    StaleOutputError
        The output folder belongs to another data set.
    """
    return engine_shards.register(layout, source, _first(layout, source, limit) if limit else None)


def announce(instance: dg.DagsterInstance, layout: Layout) -> list[str]:
    """Make the registered shards known to Dagster, by ordinal: its ranges follow that order.

    Returns
    -------
    The keys that Dagster did not know.

    Raises
    ------
    StaleOutputError
        Dagster's records belong to another data set.
    """
    # Runs elsewhere must find them.
    remote_outputs.send(layout.root)
    name = str(shards.name)
    known = list(instance.get_dynamic_partitions(name))
    keys = engine_shards.load(layout).keys
    if foreign := sorted({*known} - {*keys}):
        raise StaleOutputError(
            f"Dagster knows partitions that are no registered shards ({', '.join(foreign[:3])}). "
            "Was one added by hand in the UI? Delete it there. Otherwise these are records of "
            f"another data set (DAGSTER_HOME {instance.root_directory}, or its PostgreSQL "
            "database): use one of them for one output folder."
        )
    if known != keys:
        # Dagster's order is that of adding: those after one that was deleted are added again.
        pairs = zip(known, keys, strict=False)
        for key, _ in dropwhile(lambda pair: pair[0] == pair[1], pairs):
            instance.delete_dynamic_partition(name, key)
        instance.add_dynamic_partitions(name, keys)
    before = set(known)
    return [key for key in keys if key not in before]


def withdraw(instance: dg.DagsterInstance, layout: Layout, keys: Sequence[str]) -> list[Shard]:
    """Forget the shards registered last, in Dagster and in the engine; see `engine.withdraw`."""
    # In this order: a key that Dagster alone has forgotten comes back with the next `announce`.
    for shard in withdrawable(layout, keys):
        instance.delete_dynamic_partition(str(shards.name), shard.key)
    gone = engine_withdraw(layout, keys)
    _tell_of(instance, [shard.key for shard in gone])
    return gone


def _tell_of(instance: dg.DagsterInstance, withdrawn: list[str]) -> None:
    """Record that groups and bitmap went with these shards: Dagster would call them up to date.

    Their history stays, which a wipe would take away. The check passes again once they are made.
    """
    why = (
        f"Removed, as shards were withdrawn ({', '.join(withdrawn[:10])}"
        f"{', ...' if len(withdrawn) > 10 else ''}); the next run makes it again."
    )
    shown = {"shards_withdrawn": len(withdrawn)}
    groups, bitmap = dg.AssetKey("duplicate_groups"), dg.AssetKey("dup_bitmap")
    made = [key for key in (groups, bitmap) if instance.get_latest_materialization_event(key)]
    for key in made:
        observed = dg.AssetObservation(key, description=why, metadata=shown)
        instance.report_runless_asset_event(observed)
    if bitmap in made:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=bitmap,
                check_name="bitmap_has_all_rows",
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=why,
                metadata=shown,
            )
        )


def _first(layout: Layout, source: Source, limit: int) -> list[str]:
    known = engine_shards.load(layout).keys if layout.registry.exists() else []
    if len(known) > limit:
        raise BadInputError(
            f"{layout}: {len(known)} shards are registered, more than the limit of {limit}. A "
            "run is about all of them: leave the limit out, forget the last ones (`snip shards "
            "withdraw`), or choose another output folder."
        )
    fresh = [key for key in engine_shards.discover(source) if key not in set(known)]
    return fresh[: limit - len(known)]


def chosen(context: dg.AssetExecutionContext) -> list[str]:
    """The keys of a run, refusing one of no shard (for a reversed range Dagster would exit 0)."""
    if not (context.has_partition_key or context.has_partition_key_range):
        raise dg.Failure(
            "This run is about no shard: choose partitions where it is launched; with `dagster job "
            f'execute`, --tags \'{{"{RANGE_START}": "FIRST", "{RANGE_END}": "LAST"}}\'.',
            allow_retries=False,
        )
    if not context.partition_keys:
        raise dg.Failure(
            "This run selects no shard. A range follows the order of registration: give the "
            "earlier key first (`snip shards list` shows the order).",
            allow_retries=False,
        )
    return list(context.partition_keys)
