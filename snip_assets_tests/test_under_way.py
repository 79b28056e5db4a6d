"""What sensors see of runs and backfills that others have launched."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from snip_assets import automation
from snip_assets.definitions import build_defs
from snip_assets.under_way import under_way

JOBS, ASSETS = ("arrival", "dedup"), automation.DEDUP
AT_WORK, ENDED = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS


@pytest.mark.parametrize(
    ("job", "assets", "status", "found"),
    [
        ("arrival", None, AT_WORK, True),
        ("arrival", {"dup_bitmap"}, AT_WORK, True),
        ("verify", None, AT_WORK, False),
        # Of the UI, its backfills and `dagster asset materialize`.
        ("__ASSET_JOB", {"snip_model", "snip_index"}, AT_WORK, True),
        ("__ASSET_JOB", {"snip_index"}, ENDED, False),
        ("__ASSET_JOB", {"published_bitmap"}, AT_WORK, False),
        # Checks alone.
        ("__ASSET_JOB", None, AT_WORK, False),
    ],
)
def test_runs_without_a_job_count_by_their_assets(
    job: str, assets: set[str] | None, status: dg.DagsterRunStatus, found: bool
) -> None:
    chosen = None if assets is None else frozenset(map(dg.AssetKey, assets))
    run = dg.DagsterRun(job_name=job, status=status, asset_selection=chosen)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(run)
        told = under_way(instance, JOBS, ASSETS)
    assert told == (f"run {run.run_id[:8]}" if found else "")


def test_a_backfill_counts_between_its_runs() -> None:
    graph = build_defs().resolve_asset_graph()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", ["0000", "0001"])

        def launch(name: str, *assets: str) -> PartitionBackfill:
            backfill = PartitionBackfill.from_asset_partitions(
                backfill_id=name,
                asset_graph=graph,
                partition_names=["0000", "0001"],
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                backfill_timestamp=0.0,
                tags={},
                dynamic_partitions_store=instance,
                all_partitions=False,
                title=None,
                description=None,
                run_config=None,
            )
            instance.add_backfill(backfill)
            return backfill

        launch("others", "deduped_metadata", "drop_list")
        assert under_way(instance, JOBS, ASSETS) == ""
        backfill = launch("ours", "metadata", "snip_features", "duplicate_pairs")
        assert under_way(instance, JOBS, ASSETS) == "backfill ours"
        instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_FAILED))
        assert under_way(instance, JOBS, ASSETS) == ""
