"""The whole de-duplication against the best of FAISS on raw features, processor time.

    python benchmarks/pipeline.py [--rows 1000000] [--dim 768]

Ours: check and hash, compress, train the index and calibrate, encode, merge, join and verify.
Baselines on the raw features: IVF-Flat with 8 probes through big-batch search, and IVF with 4-bit
FastScan and exact refinement. Baselines are timed on a share of the queries and scaled to all
rows; training of their centroids counts in full, as ours does. Training of the net is apart.
Prints a table and writes benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import cores, peak_gb, table, write
from faiss.contrib.big_batch_search import big_batch_search
from synthetic import Generator

from snip_assets.engine import audit, shards, stations, threads
from snip_assets.engine.layout import Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings

MAX_DISTANCE = 0.1
K = 10


def generate(folder: Path, rows: int, dim: int, count: int) -> np.ndarray:
    """Shards on disk; returns the row id of the source of each row, -1 when not planted."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    maker = Generator(dim, rows // count)
    sources = []
    for number in range(count):
        x, source = maker.shard(number)
        np.save(folder / "img_emb" / f"img_emb_{number:04d}.npy", x)
        names = pa.array([f"http://example.org/{number}/{row}.jpg" for row in range(len(x))])
        pq.write_table(
            pa.table({"url": names, "caption": names}),
            folder / "metadata" / f"metadata_{number:04d}.parquet",
        )
        sources.append(np.where(source >= 0, source + number * len(x), -1))
    return np.concatenate(sources)


def planted(raw: shards.Features, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Planted pairs within MAX_DISTANCE that are not exact copies."""
    row = np.flatnonzero(source >= 0)
    kept = []
    for start in range(0, len(row), 65_536):
        part = row[start : start + 65_536]
        a, b = raw.take(part).astype(np.float32), raw.take(source[part]).astype(np.float32)
        distance = ((a - b) ** 2).sum(1)
        kept.append((distance <= MAX_DISTANCE) & (distance > 1e-4))
    near = np.concatenate(kept)
    return row[near], source[row][near]


def timed(name: str, work: Callable[[], Any], into: list[dict[str, Any]]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    into.append(
        {
            "stage": name,
            "seconds": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }
    )
    return result


def ours(run: stations.Run) -> list[dict[str, Any]]:
    keys = run.registry.keys
    stages: list[dict[str, Any]] = []
    timed("clip_features", lambda: stations.clip_features(run, keys), stages)
    timed("snip_model (apart)", lambda: stations.snip_model(run), stages)
    timed("snip_features", lambda: stations.snip_features(run, keys), stages)
    timed("trained_index", lambda: stations.trained_index(run), stages)
    timed("index_shards", lambda: stations.index_shards(run, keys), stages)
    timed("snip_index", lambda: stations.snip_index(run), stages)
    timed("duplicate_pairs", lambda: stations.duplicate_pairs(run, keys), stages)
    return stages


def recall_of(run: stations.Run, truth: tuple[np.ndarray, np.ndarray]) -> float:
    n = run.registry.rows
    found = [read_pairs(run.layout.duplicate_pairs(key)) for key in run.registry.keys]
    keys = np.concatenate(
        [p.row.astype(np.int64) * n + p.earlier_row.astype(np.int64) for p in found]
    )
    return float(np.isin(truth[0] * n + truth[1], keys).mean())


def baseline(
    name: str,
    raw: shards.Features,
    truth: tuple[np.ndarray, np.ndarray],
    lists: int,
    share: float,
) -> dict[str, Any]:
    """Processor time of one of FAISS's ways for all rows, and its recall of planted pairs."""
    n = len(raw)
    random = np.random.default_rng(0)
    cpu, wall = time.process_time(), time.perf_counter()
    sample = raw.take(np.sort(random.choice(n, min(n, lists * 64), False))).astype(np.float32)
    dim = sample.shape[1]
    if name == "IVF-Flat":
        found: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    else:
        coarse = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatL2(dim), dim, lists, dim // 8, 4, faiss.METRIC_L2
        )
        found = faiss.IndexRefineFlat(coarse)
        found.k_factor = 4
    found.train(sample)
    for start in range(0, n, 65_536):
        found.add(raw.take(np.arange(start, min(n, start + 65_536))).astype(np.float32))
    built, built_wall = time.process_time() - cpu, time.perf_counter() - wall
    row, source = truth
    some = random.choice(len(row), min(len(row), int(n * share)), False)
    queries = raw.take(row[some]).astype(np.float32)
    cpu, wall = time.process_time(), time.perf_counter()
    if name == "IVF-Flat":
        found.nprobe = 8
        with redirect_stdout(StringIO()):
            hits = big_batch_search(found, queries, K, method="knn_function", threaded=4)[1]
    else:
        coarse.nprobe = 8
        hits = found.search(queries, K)[1]
    scale = n / len(queries)
    used, seconds = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "method": name,
        "cpu": built + used * scale,
        "seconds": built_wall + seconds * scale,
        "recall": float((hits == source[some][:, None]).any(1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.02, help="Of the queries, for baselines.")
    parser.add_argument("--steps", type=int, default=0, help="Of the net's training.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    source = generate(folder / "data", options.rows, options.dim, options.shards)
    layout = Layout(folder / "out")
    shards.register(
        layout, shards.Source(folder / "data" / "img_emb", folder / "data" / "metadata")
    )
    run = stations.Run(layout, Settings(steps=options.steps))
    stages = ours(run)
    raw = shards.raw_features(run.registry)
    truth = planted(raw, source)
    counted = [s for s in stages if "apart" not in s["stage"]]
    total = {
        "method": "snip_assets",
        "cpu": sum(s["cpu"] for s in counted),
        "seconds": sum(s["seconds"] for s in counted),
        "recall": recall_of(run, truth),
    }
    peak = peak_gb()
    audited = audit.query_recall(run, 500, 0)
    index_facts = stations.snip_index(run).facts
    faiss.omp_set_num_threads(threads.count())
    lists = int(options.rows**0.5)
    rows = [total]
    for name in ("IVF-Flat", "IVF + FastScan + refine"):
        rows.append(baseline(name, raw, truth, lists, options.share))
    for row in rows:
        row["cpu_times_ours"] = row["cpu"] / total["cpu"]
    table(f"Our stages: {options.rows:,} x {options.dim}", stages)
    table("Whole de-duplication, processor seconds", rows)
    facts = {
        "machine": cores(),
        "rows": options.rows,
        "dim": options.dim,
        "bytes_per_row": index_facts["bytes_per_row"],
        "imbalance": index_facts["imbalance"],
        "peak_gb": peak,
        "audited_recall": audited.__dict__,
    }
    print({k: v for k, v in facts.items() if k != "machine"})
    write("pipeline", {**facts, "stages": stages, "compared": rows})


if __name__ == "__main__":
    main()
