"""Records that are written together: what Dagster tells of them is as if written one by one."""

import itertools
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from snip_assets import record_batch

KEYS = [f"{n:02d}" for n in range(7)]
MADE, TOLD = dg.AssetKey("made"), dg.AssetKey("told")
VERSIONS = {key: {DATA_VERSION_TAG: f"v{key}"} for key in KEYS}


class Way(dg.Config):
    """How to tell."""

    together: bool


@dg.asset(
    partitions_def=dg.StaticPartitionsDefinition(KEYS),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def made(context: dg.AssetExecutionContext, config: Way) -> dg.MaterializeResult[None]:
    """Leaves a record a partition, and tells of another asset's partitions."""
    records = [dg.AssetMaterialization(TOLD, partition=k, tags=t) for k, t in VERSIONS.items()]
    if config.together:
        record_batch.log_together(context, records)
    else:
        for record in records:
            context.log_event(record)
    return dg.MaterializeResult(data_version=dg.DataVersion("one"))


def _told(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """All that can be asked about the records, but for times and numbers."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    records = instance.fetch_materializations(TOLD, limit=100).records[::-1]
    numbers = [r.storage_id for r in records]
    assert numbers == sorted(numbers)
    latest = instance.get_latest_materialization_event(TOLD)
    assert latest is not None and latest.asset_materialization is not None
    events = [e.get_dagster_event() for e in instance.all_logs(run_id, of_type=kind)]
    return {
        "records": [(r.partition_key, r.asset_materialization) for r in records],
        "latest": latest.asset_materialization,
        "tags": instance.event_log_storage.get_latest_tags_by_partition(
            TOLD, kind, [DATA_VERSION_TAG]
        ),
        "partitions": instance.get_materialized_partitions(TOLD),
        "run": [(e.asset_key, e.partition, e.step_key) for e in events if e.asset_key == TOLD],
    }


@pytest.mark.parametrize(("name", "value"), [("SIZE", 500), ("SIZE", 3), ("_NEEDED", ["absent"])])
def test_as_if_written_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(record_batch, name, value)
    whole = {"start": KEYS[0], "end": KEYS[-1]}
    found = []
    for together in (False, True):
        (tmp_path / str(together)).mkdir()
        with dg.DagsterInstance.local_temp(str(tmp_path / str(together))) as instance:
            for _ in range(2):
                run = dg.materialize(
                    [made],
                    instance=instance,
                    run_config={"ops": {"made": {"config": {"together": together}}}},
                    tags={f"dagster/asset_partition_range_{k}": v for k, v in whole.items()},
                )
                assert run.success
            assert instance.get_materialized_partitions(MADE) == set(KEYS)
            found.append(_told(instance, run.run_id))
            times = [r.timestamp for r in instance.fetch_materializations(TOLD, limit=100).records]
    # As the UI tells them apart.
    assert all(int(b * 1000) < int(a * 1000) for a, b in itertools.pairwise(times))
    assert found[0] == found[1]
    assert found[0]["tags"] == VERSIONS and len(found[0]["records"]) == 2 * len(KEYS)
