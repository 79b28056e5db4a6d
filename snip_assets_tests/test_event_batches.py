"""Records that are written together: what Dagster tells of them is as if written one by one."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from snip_assets import event_batches
from snip_assets.definitions import defs

KEYS = [f"{n:02d}" for n in range(7)]
MADE, TOLD = dg.AssetKey("made"), dg.AssetKey("told")
parts = dg.StaticPartitionsDefinition(KEYS)


@dg.asset(partitions_def=parts, backfill_policy=dg.BackfillPolicy.single_run())
def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Leaves a record a partition, and tells of another asset's partitions."""
    records = [
        dg.AssetMaterialization(TOLD, partition=key, tags={DATA_VERSION_TAG: f"v{key}"})
        for key in KEYS
    ]
    event_batches.log_together(context, records)
    for key in context.partition_keys:
        context.add_asset_metadata({"own": key}, partition_key=key)
    return dg.MaterializeResult(data_version=dg.DataVersion("one"))


def _told(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """All that can be asked about the records of both assets, but for times and numbers."""
    kind, found = dg.DagsterEventType.ASSET_MATERIALIZATION, {}
    for key in (MADE, TOLD):
        records = instance.fetch_materializations(key, limit=100).records
        latest = instance.get_latest_materialization_event(key)
        assert latest is not None and latest.asset_materialization is not None
        found[key.to_user_string()] = {
            "records": [
                (r.partition_key, r.asset_materialization and r.asset_materialization.metadata)
                for r in records
            ],
            "ascending": sorted(r.storage_id for r in records)[::-1]
            == [r.storage_id for r in records],
            "latest": latest.asset_materialization.partition,
            "tags": instance.event_log_storage.get_latest_tags_by_partition(
                key, kind, [DATA_VERSION_TAG]
            ),
            "partitions": instance.get_materialized_partitions(key),
            "known": instance.has_asset_key(key),
        }
    logged = instance.all_logs(run_id, of_type=kind)
    found["run"] = [
        (e.get_dagster_event().asset_key, e.get_dagster_event().partition) for e in logged
    ]
    return found


@pytest.mark.parametrize("size", [3, event_batches.SIZE])
def test_as_if_written_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    assert defs
    stored, found = [], []
    together = event_batches.SqliteEventLogStorage.store_event_batch

    def counted(self: Any, events: Any) -> None:
        stored.append(len(events))
        together(self, events)

    monkeypatch.setattr(event_batches.SqliteEventLogStorage, "store_event_batch", counted)
    for of in (0, size):
        monkeypatch.setenv(event_batches.VARIABLE, str(of))
        (tmp_path / str(of)).mkdir()
        with dg.DagsterInstance.local_temp(str(tmp_path / str(of))) as instance:
            for _ in range(2):
                run = dg.materialize(
                    [made],
                    instance=instance,
                    tags={
                        "dagster/asset_partition_range_start": KEYS[0],
                        "dagster/asset_partition_range_end": KEYS[-1],
                    },
                )
                assert run.success and bool(stored) == bool(of)
            found.append(_told(instance, run.run_id))
    assert found[0] == found[1]
    assert found[0]["told"]["tags"] == {key: {DATA_VERSION_TAG: f"v{key}"} for key in KEYS}
    # Of each run, what is planned and the records of both assets; one alone is written as before.
    assert len(stored) == 2 * 3 * (len(KEYS) // size + bool(len(KEYS) % size > 1))
