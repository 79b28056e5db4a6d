"""What a shard costs that arrives behind others, against the whole.

    python benchmarks/incremental.py [--shards 100] [--rows 2000 --rows 20000] [--steps 300]
        [--engine]

All shards but the last are worked, station by station; then the last arrives: first in the engine
alone, then through Dagster, as `snip dedup` does it. With shards of 2,000 rows, what a station does
a shard, a list or a file stands out; with 20,000, what it does a row. What the whole costs is told
with the training of the net and without. Prints tables and writes
benchmarks/results/incremental.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cores, table, write
from scale import NAMES, generate

from snip_assets.engine import shards, stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.garbage import loading

# As `snip dedup` does it.
with loading():
    from snip_assets import graph
    from snip_assets.resources import DataSet


def times(run: stations.Run, keys: list[str]) -> dict[str, float]:
    """Seconds of each station for some shards, and for what stands between shards and all rows."""
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        started = time.perf_counter()
        work()
        found[name] = time.perf_counter() - started

    timed("metadata", lambda: stations.metadata(run, keys))
    timed("clip_features", lambda: stations.clip_features(run, keys))
    timed("snip_model", lambda: stations.snip_model(run))
    timed("snip_features", lambda: stations.snip_features(run, keys))
    timed("trained_index", lambda: stations.trained_index(run))
    timed("index_shards", lambda: stations.index_shards(run, keys))
    timed("snip_index", lambda: stations.snip_index(run))
    timed("duplicate_pairs", lambda: stations.duplicate_pairs(run, keys))
    timed("duplicate_groups", lambda: stations.duplicate_groups(run))
    timed("dup_bitmap", lambda: stations.dup_bitmap(run))
    timed("deduped_metadata", lambda: stations.deduped_metadata(run, run.registry.keys))
    timed("drop_list", lambda: stations.drop_list(run, run.registry.keys))
    return found


def through_dagster(data: DataSet, limit: int) -> dict[str, float]:
    """Seconds of each step of what `snip dedup` runs, and of all of it."""
    started = time.perf_counter()
    outcome = graph.materialize(data, limit)
    found = {name: s for name, s in outcome.seconds.items() if name in NAMES}
    found["checks"] = sum(s for name, s in outcome.seconds.items() if name not in NAMES)
    found["between steps"] = time.perf_counter() - started - sum(found.values())
    return found


def measure(count: int, rows: int, dim: int, steps: int, dagster: bool) -> list[dict[str, Any]]:
    """A row a station: seconds for all shards but one, for the last, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, count * rows, dim, count)
        source = shards.Source(folder / "img_emb", folder / "metadata")
        layout, keys = Layout(folder / "out"), shards.discover(source)
        settings = Settings(steps=steps)
        if dagster:
            data = DataSet.of(source, layout.root, settings)
            whole, arrival = through_dagster(data, count - 1), through_dagster(data, count)
        else:
            shards.register(layout, source, keys[:-1])
            whole = times(stations.Run(layout, settings), keys[:-1])
            shards.register(layout, source, keys)
            arrival = times(stations.Run(layout, settings), keys[-1:])
    for found in (whole, arrival):
        found["in all"] = sum(found.values())
        found["in all, training of the net apart"] = found["in all"] - found["snip_model"]
    return [
        {"station": n, "all before, s": whole[n], "one more, s": arrival[n]}
        | {"share": arrival[n] / max(whole[n], 1e-9)}
        for n in whole
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--rows", type=int, action="append", help="Of a shard; may be repeated.")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--steps", type=int, default=0, help="Of the net's training.")
    parser.add_argument("--engine", action="store_true", help="Without Dagster.")
    options = parser.parse_args()
    sizes = []
    for rows in options.rows or [2000, 20_000]:
        for dagster in (False,) if options.engine else (False, True):
            found = measure(options.shards, rows, options.dim, options.steps, dagster)
            title = f"A shard of {rows:,} rows behind {options.shards - 1} others"
            table(title + ", through Dagster" * dagster, found)
            about = {"shards": options.shards, "rows_per_shard": rows, "dagster": dagster}
            sizes.append({**about, "stations": found})
    write("incremental", {"machine": cores(), "dim": options.dim, "sizes": sizes})


if __name__ == "__main__":
    main()
