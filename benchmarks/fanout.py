"""Speed-up of the heavy stations over one worker of a Dask scheduler.

    python benchmarks/fanout.py [--rows 1600000] [--dim 512] [--shards 16] [--workers 2]

A scheduler and its workers are processes on loopback, each worker with one thread: so a worker
takes the place of a machine, and what is measured is how well the shards of a station spread, with
all that Dask costs. The same features are worked with one worker and with all; stations that are
no work for workers (training, merging, groups) run in this process and are not timed. All outputs
are compared byte for byte. Prints a table and writes benchmarks/results/fanout.json.

Needs `pip install 'snip_assets[dask]'`, and at least as many cores as workers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import cores, table, write
from scale import generate

from snip_assets.engine import shards, stations
from snip_assets.engine.fanout import fan_out
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import checksum, manifest_path
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

ORDER = (
    *("metadata", "clip_features", "snip_model", "snip_features", "trained_index"),
    *("index_shards", "snip_index", "duplicate_pairs", "duplicate_groups", "dup_bitmap"),
    *("deduped_metadata", "drop_list"),
)
# What workers do, shard by shard.
SPREAD = (
    *("clip_features", "snip_features", "index_shards", "duplicate_pairs"),
    *("deduped_metadata", "drop_list"),
)
SECONDS_TO_START = 60
# How long the net is trained does not change what compression costs.
SETTINGS = Settings(workers=1, steps=20)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A scheduler with some workers of one thread each; yields its address."""
    file = folder / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(file), "--host", "127.0.0.1"]
    worker = ["dask_worker", *common, "--nthreads", "1", "--no-nanny"]
    worker += ["--preload", "snip_assets.engine.stations"]
    commands = [["dask_scheduler", "--port", "0", *common], *[worker] * workers]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        for name, *arguments in commands
    ]
    try:
        yield _address(file, processes, workers)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        file.unlink(missing_ok=True)


def _address(file: Path, processes: list[subprocess.Popen], workers: int) -> str:
    from distributed import Client

    for _ in range(10 * SECONDS_TO_START):
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a process of the cluster has ended")
        with suppress(FileNotFoundError, ValueError):
            address = json.loads(file.read_text())["address"]
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=SECONDS_TO_START)
            return address
        time.sleep(0.1)
    raise SystemExit("the scheduler did not start")


def times(layout: Layout, source: shards.Source, compute: str) -> dict[str, float]:
    """Seconds of each station that the workers do."""
    shards.register(layout, source)
    run = stations.Run(layout, replace(SETTINGS, compute=compute))
    found: dict[str, float] = {}
    for name in ORDER:
        station, started = getattr(stations, name), time.perf_counter()
        if name in SPREAD:
            fan_out(station, run, run.registry.keys)
            found[name] = time.perf_counter() - started
        elif name == "metadata":
            station(run, run.registry.keys)
        else:
            station(run)
    return found


def outputs(layout: Layout) -> dict[str, str]:
    """Checksum of each file that the workers wrote, manifests apart: they hold seconds."""
    files = [path for name in SPREAD for path in (layout.root / name).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(layout.root)): checksum(path)
        for path in files
        if not path.name.endswith(".manifest.json")
    }


def take_over(trained: Layout, layout: Layout) -> None:
    """Net and index of another run, which are the same and take long to train."""
    for name in ("snip_model", "trained_index"):
        shutil.copytree(trained.root / name, layout.root / name)
        shutil.copy(manifest_path(trained.root / name), manifest_path(layout.root / name))


def measure(folder: Path, source: shards.Source, count: int) -> tuple[list[dict[str, Any]], bool]:
    """A row a station, and whether all outputs were the same bytes."""
    layouts: dict[int, Layout] = {}
    seconds: dict[int, dict[str, float]] = {}
    for workers in (1, count):
        layouts[workers] = Layout(folder / f"out-{workers}")
        if workers > 1:
            take_over(layouts[1], layouts[workers])
        with cluster(folder, workers) as address:
            # Compiled kernels are loaded by each worker at its first task.
            warm = Layout(folder / f"warm-{workers}")
            times(warm, shards.Source(SAMPLE_FEATURES, SAMPLE_METADATA), address)
            seconds[workers] = times(layouts[workers], source, address)
    one, many = (outputs(layouts[workers]) for workers in (1, count))
    rows: list[dict[str, Any]] = [
        {
            "station": name,
            "one worker, s": seconds[1][name],
            f"{count} workers, s": seconds[count][name],
        }
        for name in SPREAD
    ]
    total = {k: sum(r[k] for r in rows) for k in rows[0] if k != "station"}
    rows.append({"station": "in all", **total})
    for row in rows:
        row["speed-up"] = row["one worker, s"] / row[f"{count} workers, s"]
    return rows, bool(one) and one == many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_600_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if find_spec("distributed") is None:
        raise SystemExit("Dask is not installed; pip install 'snip_assets[dask]'")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, options.rows, options.dim, options.shards)
        source = shards.Source(folder / "img_emb", folder / "metadata")
        rows, same = measure(folder, source, options.workers)
    title = f"{options.rows:,} x {options.dim} in {options.shards} shards, a core a worker"
    table(title, rows)
    print("all outputs the same bytes" if same else "OUTPUTS DIFFER")
    facts = {"machine": cores(), "rows": options.rows, "dim": options.dim}
    facts |= {"shards": options.shards, "workers": options.workers, "same_bytes": same}
    write("fanout", {**facts, "stations": rows})
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
