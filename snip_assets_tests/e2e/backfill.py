"""A backfill whose daemon, code server and runs are killed in the middle, with real services.

    python -m snip_assets_tests.e2e.backfill --times 5

Each time: a backfill over the shards of the built-in sample is launched over GraphQL, everything
but the webserver gets SIGKILL at a random moment while runs of it are at work, and the daemon is
started again. Survived is what then completes, of itself or launched again, with outputs from the
first station to the drop list that are byte for byte those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.fault_tools import STATIONS, contents, leftovers, station
from snip_assets import graph
from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import manifest_path, read_manifest
from snip_assets.resources import DataSet
from snip_assets_tests.e2e.arrivals import Arrivals
from snip_assets_tests.e2e.services import Services, wait

FAULT = "SIGKILL of daemon and code server in mid-backfill"
BACKFILLED = (
    *("metadata", "clip_features", "snip_features", "index_shards", "snip_index"),
    *("duplicate_pairs", "duplicate_groups", "dup_bitmap", "kept_rows", "dropped_rows"),
    *("deduped_metadata", "drop_list", "dedup_report"),
)
SHARDS_PER_RUN = 2
LAUNCHES = 3
MOST = 400.0
ENDED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
LAUNCH = """mutation($b:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$b){
__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"""
STATUS = """query($i:String!){partitionBackfillOrError(backfillId:$i){
... on PartitionBackfill{status}}}"""


class Trial:
    """A source, an undisturbed output, and services over an output of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.arrivals = Arrivals(folder)
        for key in self.arrivals.keys:
            self.arrivals.put(key)
        self.layout, self.services = self.arrivals.layout, self.arrivals.services
        self.services.variables["SNIP_SHARDS_PER_RUN"] = str(SHARDS_PER_RUN)
        self.undisturbed = folder / "undisturbed"
        shards.register(Layout(self.undisturbed), self.arrivals.source)
        for name in STATIONS:
            station(self.undisturbed, name)
        graph.sync(DataSet.of(self.arrivals.source, self.layout.root, Settings()))
        # A run that is killed before it told its process is found by its limit for starting only.
        settings = Path(self.services.variables["DAGSTER_HOME"]) / "dagster.yaml"
        monitored = "run_monitoring:\n  enabled: true\n"
        quick = f"{monitored}  start_timeout_seconds: 40\n  poll_interval_seconds: 10\n"
        text = settings.read_text()
        assert monitored in text
        settings.write_text(text.replace(monitored, quick))
        # Net and index are trained once, before shards are worked on.
        for name in ("snip_model", "trained_index"):
            source = self.undisturbed / name
            shutil.copytree(source, self.layout.root / name)
            shutil.copy(manifest_path(source), self.layout.root)

    def play(self) -> dict[str, Any]:
        """Launch, kill, start again, wait; what happened, with `why` if it did not survive."""
        services = self.services
        services.start("webserver")
        try:
            services.wait_ready()
            # Not at once: both would make the tables of a new SQLite database.
            services.start("daemon")
            told = self._disturbed(services)
        except (TimeoutError, RuntimeError) as error:
            return {"why": str(error)}
        finally:
            services.stop()
        wrong = [n for n in STATIONS if not self._equal(n)]
        left = [p for p in leftovers(self.layout.root / "snip_features") if ".tmp" in p]
        why = f"differ: {wrong}" if wrong else f"left: {left[:3]}" if left else ""
        return {**told, "why": why}

    def _disturbed(self, services: Services) -> dict[str, Any]:
        number, launches = launch(services, self.arrivals.keys), 1
        wait(lambda: bool(services.runs(statuses=["STARTED"])), "a run", MOST)
        time.sleep(self.random.uniform(0, 12))
        before = status(services, number)
        done = sum(
            read_manifest(self.layout.index_shards(k)) is not None for k in self.arrivals.keys
        )
        killed = services.kill("daemon")
        started = time.monotonic()
        services.start("daemon")
        while (end := ended(services, number)) not in ("COMPLETED", "COMPLETED_SUCCESS"):
            if launches == LAUNCHES:
                raise RuntimeError(f"launched {launches} times, then {end}")
            number, launches = launch(services, self.arrivals.keys), launches + 1
        return {
            "before the kill": before,
            "shards done before the kill": done,
            "processes killed": killed,
            "launches": launches,
            "seconds after the kill": round(time.monotonic() - started, 1),
        }

    def _equal(self, name: str) -> bool:
        try:
            return contents(self.layout.root, name) == contents(self.undisturbed, name)
        except OSError:
            return False


def launch(services: Services, keys: list[str]) -> str:
    """Launch the backfill as the UI does; its id."""
    found = services.query(
        LAUNCH,
        b={"assetSelection": [{"path": [a]} for a in BACKFILLED], "partitionNames": keys},
    )["launchPartitionBackfill"]
    if "backfillId" not in found:
        raise RuntimeError(str(found))
    return str(found["backfillId"])


def status(services: Services, number: str) -> str:
    """Status of a backfill."""
    return str(services.query(STATUS, i=number)["partitionBackfillOrError"]["status"])


def ended(services: Services, number: str) -> str:
    """Wait for the end of a backfill; how it ended."""
    wait(lambda: status(services, number) in ENDED, f"backfill {number}", MOST)
    return status(services, number)


def save(row: dict[str, Any], *, add: bool) -> None:
    """Into the table of faults, instead of the row that is there or added to it."""
    path = common.RESULTS / "faults.json"
    value = json.loads(path.read_text())
    old = value["faults"].get(FAULT) if add else None
    if old:
        row = {
            **row,
            "survived": old["survived"] + row["survived"],
            "tried": old["tried"] + row["tried"],
            "launches": [*old["launches"], *row["launches"]],
        }
    value["faults"][FAULT] = row
    common.write("faults", value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/faults.json")
    parser.add_argument("--add", action="store_true", help="to what is written there")
    options = parser.parse_args()
    # Stopped by a time limit, leave no service behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    survived, launches = 0, []
    for number in range(options.times):
        folder = Path(tempfile.mkdtemp(prefix="snip-backfill-"))
        told = Trial(folder, options.seed + number).play()
        print(json.dumps(told), flush=True)
        survived += not told["why"]
        launches.append(told.get("launches"))
        if told["why"]:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    row = {"fault": FAULT, "survived": survived, "tried": options.times, "launches": launches}
    print(json.dumps(row))
    if options.write:
        save(row, add=options.add)
    assert survived == options.times


if __name__ == "__main__":
    main()
