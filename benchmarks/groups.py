"""Connected components: ours beside scipy's, time and peak memory, each in its own process.

CPU seconds count the whole process: seconds are the work alone, and depend on what else runs.

    python benchmarks/groups.py --rows 100000000 --pairs 100000000

Pairs are generated as the search writes them: files of a shard each, sorted by row, in parquet.
Half of the pairs join a row with a random earlier one (one giant group), half with a near one
(many groups). scipy's needs the whole graph in memory; ours streams it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.pair_files import SCHEMA

FILES = 20


def generate(folder: Path, rows: int, pairs: int) -> list[Path]:
    """Write `pairs` pairs over `rows` rows in `FILES` files."""
    files = []
    for number in range(FILES):
        random = np.random.default_rng(number)
        low, high = max(1, rows * number // FILES), rows * (number + 1) // FILES
        row = np.sort(random.integers(low, high, pairs // FILES))
        anywhere = (random.random(len(row)) * row).astype(np.int64)
        near = np.maximum(row - random.integers(1, 1000, len(row)), 0)
        earlier = np.where(random.random(len(row)) < 0.5, anywhere, near)
        columns = [row.astype(np.uint64), earlier.astype(np.uint64)]
        far = random.random(len(row), np.float32) * np.float32(0.1)
        table = pa.table([*columns, far], schema=SCHEMA)
        files.append(folder / f"{number:04d}.parquet")
        pq.write_table(table, files[-1], compression="zstd", row_group_size=1 << 20)
    return files


def run_ours(files: list[Path], rows: int) -> tuple[int, float]:
    """Components, and seconds without importing and compiling."""
    from snip_assets.engine.groups import extend

    extend(None, [], 2)
    start = time.perf_counter()
    labels = extend(None, files, rows)
    seconds = time.perf_counter() - start
    return count_roots(labels), seconds


def count_roots(labels: np.ndarray) -> int:
    """Rows that are their own label: one a component."""
    count = 0
    for start in range(0, len(labels), 1 << 20):
        block = labels[start : start + (1 << 20)]
        count += int(np.count_nonzero(block == np.arange(start, start + len(block))))
    return count


def run_scipy(files: list[Path], rows: int) -> tuple[int, float]:
    """The same with scipy, the graph as small as it can be built there."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start = time.perf_counter()
    ends = [np.empty(sum(pq.read_metadata(f).num_rows for f in files), np.int32) for _ in "ab"]
    filled = 0
    for file in files:
        table = pq.read_table(file, columns=["row", "earlier_row"])
        for end, name in zip(ends, ("row", "earlier_row"), strict=True):
            end[filled : filled + len(table)] = table[name].to_numpy()
        filled += len(table)
    graph = coo_array((np.ones(filled, np.bool_), tuple(ends)), shape=(rows, rows)).tocsr()
    count, _ = connected_components(graph, directed=False)
    return int(count), time.perf_counter() - start


def run_keep(files: list[Path], rows: int) -> tuple[int, float]:
    """The whole keep rule (default priority): rows kept."""
    from snip_assets.engine.keep import keep

    with tempfile.TemporaryDirectory(dir=files[0].parent) as folder:
        keep([], 2, "neighbours", Path(folder))
        start = time.perf_counter()
        facts = keep(files, rows, "neighbours", Path(folder))
        return facts["kept"], time.perf_counter() - start


RUNS = {"snip_assets": run_ours, "scipy": run_scipy, "snip_assets keep rule": run_keep}


def measure(name: str, folder: Path, rows: int) -> dict:
    """Run one of them in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    result = subprocess.run([*command, "--rows", str(rows)], capture_output=True, text=True)
    if result.returncode:
        return {"name": name, "failed": (result.stderr.strip().splitlines() or ["killed"])[-1]}
    return {"name": name, **json.loads(result.stdout)}


def child(name: str, folder: Path, rows: int) -> None:
    """Print what one of them gives and takes, as JSON."""
    files = sorted(folder.glob("*.parquet"))
    answer, seconds = RUNS[name](files, rows)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "answer": answer,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    print(json.dumps(figures))


def line(run: dict) -> str:
    """A row of the table."""
    if "failed" in run:
        return f"| {run['name']} | {run['failed']} | | | |"
    memory = f"{run['peak_bytes'] / 1e9:.2f}"
    times = f"{run['seconds']} | {run['cpu_seconds']}"
    return f"| {run['name']} | {times} | {memory} | {run['answer']:,} |"


def main() -> None:
    """Generate, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder), options.rows, options.pairs)
        size = sum(file.stat().st_size for file in files)
        runs = [measure(name, Path(folder), options.rows) for name in options.only]
    print(f"{options.rows:,} rows, {options.pairs:,} pairs ({size / 1e9:.2f} GB of parquet)\n")
    print("| | seconds | CPU seconds | peak memory, GB | components (rows kept) |")
    print("|---|---|---|---|---|")
    for run in runs:
        print(line(run))
    machine = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"rows": options.rows, "pairs": options.pairs, "machine": machine, "runs": runs}
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    (options.out / "groups.json").write_text(text)


if __name__ == "__main__":
    main()
