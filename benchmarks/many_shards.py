"""Thousands of registered shards: pages of the UI, ticks of the sensor, a backfill over 200.

    python -m benchmarks.many_shards --shards 2314

The shards are tiny (2 rows each), since the number is what matters. Pages are the GraphQL queries
that the UI asks for them, against a real webserver; the sensor is evaluated as the daemon does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import common
from snip_assets import graph, home, sensors
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.resources import DataSet, Watch
from snip_assets_tests.e2e.services import Services, wait

PAGES = {
    "catalogue of assets": "{assetNodes{id assetKey{path} groupName kinds description}}",
    "an asset's partitions": (
        "query($k:AssetKeyInput!){assetNodeOrError(assetKey:$k){... on AssetNode{"
        "partitionKeys partitionKeysByDimension{name partitionKeys type} "
        "partitionStats{numMaterialized numFailed numPartitions} "
        "assetPartitionStatuses{... on DefaultPartitionStatuses{materializedPartitions "
        "failedPartitions unmaterializedPartitions}} latestMaterializationByPartition("
        "partitions:$p){timestamp}}}}"
    ),
    "an asset": (
        "query($k:AssetKeyInput!){assetOrError(assetKey:$k){... on Asset{id "
        "assetMaterializations(limit:50){partition runId timestamp metadataEntries{__typename "
        "label description}} definition{id description jobNames dependencyKeys{path} "
        "partitionDefinition{type name} partitionStats{numMaterialized numMaterializing numFailed "
        "numPartitions} assetChecksOrError{... on AssetChecks{checks{name description blocking "
        "executionForLatestMaterialization{status timestamp evaluation{severity}}}}}}}}}"
    ),
    "the graph, live": (
        "query($ks:[AssetKeyInput!]!){assetNodes(assetKeys:$ks){id staleStatus "
        "partitionStats{numMaterialized numPartitions} assetMaterializations(limit:1){timestamp}}}"
    ),
    "runs": "{runsOrError(limit:25){... on Runs{results{id status jobName tags{key value}}}}}",
    "backfills": "{partitionBackfillsOrError(limit:10){... on PartitionBackfills{results{id "
    "status}}}}",
    "sensors": "query($r:RepositorySelector!){sensorsOrError(repositorySelector:$r){... on Sensors{"
    "results{name sensorState{status ticks(limit:20){status}}}}}}",
}
ASSETS = ("metadata", "clip_features", "snip_features", "duplicate_pairs", "deduped_metadata")


def data_in(folder: Path) -> DataSet:
    """Source and output in a folder."""
    source = Source(folder / "img_emb", folder / "metadata")
    return DataSet.of(source, folder / "out", Settings())


def make(folder: Path, shards: int) -> DataSet:
    """Write the shards."""
    data = data_in(folder)
    source = data.source
    for path in (source.features, source.metadata):
        path.mkdir(parents=True)
    draw = np.random.default_rng(0)
    table = pa.table({"url": ["u", "v"], "caption": ["a", "b"]})
    for number in range(shards):
        features = draw.normal(size=(2, 16)).astype(np.float16)
        np.save(source.features / f"img_emb_{number:04d}.npy", features)
        pq.write_table(table, source.metadata / f"metadata_{number:04d}.parquet")
    return data


def ticks(data: DataSet, most: int) -> list[float]:
    """Seconds by the clock of the sensor's ticks until all are registered, and two more."""
    seconds, cursor, idle = [], None, 0
    with home.instance(data.layout) as instance:
        while idle < 2:
            context = dg.build_sensor_context(
                instance, cursor=cursor, resources={"data": data, "watch": Watch(most=most)}
            )
            started = time.perf_counter()
            result = sensors.new_shards(context)
            seconds.append(round(time.perf_counter() - started, 3))
            cursor = result.cursor
            idle += bool(result.run_requests)
    return seconds


def pages(services: Services, times: int = 5) -> dict[str, float]:
    """Median seconds of each page."""
    key = {"path": ["clip_features"]}
    found = {}
    for name, text in PAGES.items():
        if "$p" in text:
            text = text.replace("($k:AssetKeyInput!)", "($k:AssetKeyInput!,$p:[String!])")
        variables = {
            "an asset's partitions": {"k": key, "p": ["0000"]},
            "an asset": {"k": key},
            "the graph, live": {"ks": [{"path": [a]} for a in ASSETS]},
            "sensors": {"r": services.selector()},
        }.get(name, {})
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            services.query(text, **variables)
            seconds.append(time.perf_counter() - started)
        found[name] = round(statistics.median(seconds), 3)
    return found


def backfill(services: Services, keys: list[str]) -> float:
    """Seconds of a backfill of the first two stations."""
    started = services.query(
        "mutation($b:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$b){__typename "
        "... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}",
        b={
            "assetSelection": [{"path": ["metadata"]}, {"path": ["clip_features"]}],
            "partitionNames": keys,
        },
    )["launchPartitionBackfill"]
    number = started["backfillId"]

    def done() -> bool:
        status = services.query(
            "query($i:String!){partitionBackfillOrError(backfillId:$i){... on PartitionBackfill{"
            "status}}}",
            i=number,
        )["partitionBackfillOrError"]["status"]
        if status in ("FAILED", "CANCELED"):
            raise RuntimeError(f"backfill {status}")
        return status in ("COMPLETED", "COMPLETED_SUCCESS")

    return round(wait(done, "backfill", 900), 1)


@contextmanager
def served(data: DataSet, folder: Path, per_run: int) -> Iterator[Services]:
    """Daemon and webserver."""
    variables = home.environment(data.layout, data.source)
    variables["SNIP_SHARDS_PER_RUN"] = str(per_run)
    services = Services(variables, folder)
    services.start("webserver")
    services.start("daemon")
    try:
        services.wait_ready()
        yield services
    finally:
        services.stop()


def watch(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write and register the shards, and look at the pages."""
    data = make(folder, options.shards)
    took = ticks(data, most=500)
    graph.sync(data)
    with served(data, folder, options.per_run) as services:
        found = pages(services)
    largest = {"largest tick": max(took), "last tick": took[-1], "ticks": took}
    return {"shards": options.shards, **largest, "pages": found}


def fill(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The backfill, and the pages after it."""
    data = data_in(folder)
    keys = [f"{n:04d}" for n in range(options.backfill)]
    with served(data, folder, options.per_run) as services:
        seconds = backfill(services, keys)
        runs = len(services.runs())
        found = pages(services)
    done = {"shards": len(keys), "runs": runs, "seconds": seconds}
    return {"backfill": done, "pages after the backfill": found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"watch": watch, "backfill": fill}
    parser.add_argument("--shards", type=int, default=2314)
    parser.add_argument("--backfill", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=50, help="SNIP_SHARDS_PER_RUN")
    parser.add_argument("--only", choices=parts, nargs="*", default=list(parts))
    parser.add_argument("--folder", type=Path, help="to do the parts one after the other")
    options = parser.parse_args()
    path = common.RESULTS / "many_shards.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result["machine"] = common.cores()
    with tempfile.TemporaryDirectory(prefix="snip-many-") as name:
        for part in options.only:
            found = parts[part](options.folder or Path(name), options)
            print(json.dumps(found, indent=1), flush=True)
            result |= found
            common.write("many_shards", result)


if __name__ == "__main__":
    main()
