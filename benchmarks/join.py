"""The join against searching: all rows against earlier rows, on the same lists.

    python benchmarks/join.py [--rows 2000000] [--lists 2048]

Prints a table and writes benchmarks/results/join.json. Baselines are timed on a sample of the
queries and scaled to all rows (a search costs the same for each query). The speed of a machine
drifts: methods take turns, and the fastest turn of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from common import cores, peak_gb, table, write
from synthetic import Generator

from snip_assets.engine import (
    calibrate,
    calibration,
    encode,
    index,
    list_queries,
    pairs,
    query_rows,
    threads,
    verify,
)
from snip_assets.engine.axes import Axes
from snip_assets.engine.features import Features
from snip_assets.engine.settings import Settings
from snip_assets.engine.trained import TrainedIndex

MAX_DISTANCE = 0.1
SHARDS = 4
TURNS = 3
QUERY_BLOCK, ROW_BLOCK = 256, 1024


def product_rate(workers: int, dim: int = 128) -> float:
    """Pairs a second of the bare float32 product, in blocks that suit the caches, all cores."""

    def work(_: int) -> float:
        a, b = torch.randn(QUERY_BLOCK, dim), torch.randn(ROW_BLOCK, dim)
        out = torch.empty(len(a), len(b))
        torch.mm(a, b.T, out=out)
        started = time.perf_counter()
        for _ in range(300):
            torch.mm(a, b.T, out=out)
        return time.perf_counter() - started

    slowest = max(threads.ordered_map(work, range(workers), workers))
    return workers * 300 * QUERY_BLOCK * ROW_BLOCK / slowest


def planted(rows: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Planted pairs within MAX_DISTANCE."""
    row = np.flatnonzero(source >= 0)
    a, b = rows[row].astype(np.float32), rows[source[row]].astype(np.float32)
    near = ((a - b) ** 2).sum(1) <= MAX_DISTANCE
    return row[near], source[row][near]


def search_baseline(
    found: faiss.Index, x: np.ndarray, truth: tuple[np.ndarray, np.ndarray], queries: int
) -> dict[str, float]:
    """Seconds for all rows, and recall of planted pairs, of k = 10 at 1 probe."""
    found.nprobe = 1
    row, source = truth
    chosen = row[np.linspace(0, len(row) - 1, min(queries, len(row))).astype(int)]
    other = source[np.searchsorted(row, chosen)]
    found.search(x[chosen[:64]].astype(np.float32), 10)
    wide = x[chosen].astype(np.float32)
    started, cpu = time.perf_counter(), time.process_time()
    hits = found.search(wide, 10)[1]
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    scale = len(x) / len(chosen)
    recall = (hits == other[:, None]).any(1).mean()
    return {"seconds": wall * scale, "cpu": used * scale, "recall": float(recall)}


def calibrated(
    trained: TrainedIndex, x: np.ndarray, truth: tuple[np.ndarray, np.ndarray]
) -> tuple[calibration.Calibration, np.ndarray]:
    """Slacks, radius and axes as `trained_index` would choose them, from a part of the truth."""
    random = np.random.default_rng(0)
    some = np.sort(random.choice(len(x), min(len(x), 50_000), replace=False))
    sample = x[some].astype(np.float32)
    part = random.choice(len(truth[0]), min(len(truth[0]), 20_000), replace=False)
    ends = np.concatenate([truth[0][part], truth[1][part]])
    names, place = np.unique(ends, return_inverse=True)
    later, earlier = place[: len(part)], place[len(part) :]
    true = np.ones(len(part), bool)
    known = calibrate.KnownPairs(
        x[names].astype(np.float32), later, earlier, true, np.ones(len(true))
    )
    fresh = np.ones(len(some), bool)
    given = calibration.Sample(None, sample, fresh, len(x))
    return calibrate.calibrate(trained, given, Settings(), known)


def our_join(
    trained: TrainedIndex,
    folder: Path,
    x: np.ndarray,
    chosen: calibration.Calibration,
    axes: np.ndarray,
    radius: float,
) -> tuple[pairs.Join, list[query_rows.QueryShard]]:
    """Encode the shards and set up the join; not timed."""
    cuts = np.linspace(0, len(x), SHARDS + 1).astype(int)
    own = Axes(axes, chosen.axis_scale)
    encoder = encode.Encoder(trained, own, radius, 8)
    paths, parts, shards = [], [], []
    for number in range(SHARDS):
        path, out = folder / f"{number}.npy", folder / f"index-{number}"
        np.save(path, x[cuts[number] : cuts[number + 1]])
        encode.encode_shard(encoder, path, out)
        paths.append(path)
        parts.append(index.ListFolder(out, int(cuts[number])))
        shards.append(query_rows.QueryShard(int(cuts[number]), out))
    segment = folder / "segment"
    index.merge(parts, segment, len(x))
    return pairs.Join(
        index=index.SnipIndex(trained, [index.ListFolder(segment, 0)]),
        rule=list_queries.CandidateRule(chosen.slack, chosen.short_slack, own),
        verifier=verify.Verifier(None, None, MAX_DISTANCE, MAX_DISTANCE),
        queries=Features(paths, cuts),
        exact_queries=True,
        is_copy=None,
        max_partners=1000,
    ), shards


def time_join(
    work: pairs.Join,
    shards: list[query_rows.QueryShard],
    truth: tuple[np.ndarray, np.ndarray],
    n: int,
) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    found, counts = pairs.find_pairs(work, shards)
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    every = verify.Pairs.concatenate(found)
    key = np.sort(every.row.astype(np.int64) * n + every.earlier_row.astype(np.int64))
    wanted = truth[0] * n + truth[1]
    at = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    recall = float((key[at] == wanted).mean())
    return {
        "seconds": wall,
        "cpu": used,
        "recall": recall,
        "pairs_per_second": counts.products / wall,
        "candidates_per_row": counts.candidates / n,
    }


def fast_scan(x: np.ndarray, sample: np.ndarray, centroids: np.ndarray) -> faiss.Index:
    """4-bit FastScan of all rows on the same lists."""
    dim, lists = x.shape[1], len(centroids)
    fast = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(dim), dim, lists, 16, 4, faiss.METRIC_L2)
    fast.quantizer.add(centroids)
    fast.train(sample)
    for start in range(0, len(x), 65_536):
        fast.add(x[start : start + 65_536].astype(np.float32))
    return fast


def in_turns(methods: dict[str, Callable[[], dict[str, float]]]) -> list[dict[str, Any]]:
    """The fastest of `TURNS` turns of each method."""
    turns = [{name: method() for name, method in methods.items()} for _ in range(TURNS)]
    return [
        {"method": name, **min((turn[name] for turn in turns), key=lambda row: row["seconds"])}
        for name in methods
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=2_000_000)
    arguments.add_argument("--lists", type=int, default=2048)
    arguments.add_argument("--queries", type=int, default=20_000)
    options = arguments.parse_args()
    x, source = Generator(128, options.rows).shard(0)
    truth = planted(x, source)
    some = np.sort(np.random.default_rng(0).choice(len(x), min(len(x), 262_144), False))
    sample = x[some].astype(np.float32)
    trained = TrainedIndex.train(sample, options.lists, "PQ8")
    workers = threads.count()
    faiss.omp_set_num_threads(workers)
    methods: dict[str, Callable[[], dict[str, float]]] = {
        "bare product": lambda: {"seconds": 1 / product_rate(workers)}
    }
    with tempfile.TemporaryDirectory() as folder:
        chosen, axes = calibrated(trained, x, truth)
        joins = []
        for radius, name in ((0.0, "join, 1 probe"), (chosen.radius, "join, calibrated probes")):
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            joins.append(our_join(trained, place, x, chosen, axes, radius))
            time_join(joins[-1][0], joins[-1][1][:1], truth, len(x))
            methods[name] = partial(time_join, *joins[-1], truth, len(x))
        single = joins[0][0].index
        fast, whole = fast_scan(x, sample, trained.centroids), single.to_faiss()
        # As long a turn as the join's: a search by codes of 4 bits is several times as fast.
        for name, found, queries in (
            ("4-bit FastScan, 8 bytes", fast, 10 * options.queries),
            ("IndexIVFPQ.search", whole, options.queries),
        ):
            methods[name] = partial(search_baseline, found, x, truth, queries)
        product, *rows = in_turns(methods)
    rate, ours = 1 / product["seconds"], rows[0]
    for row in rows:
        row["times_ours"] = row["seconds"] / ours["seconds"]
        if "pairs_per_second" in row:
            row["of_product"] = row["pairs_per_second"] / rate
    imbalance = single.list_sizes.astype(float)
    facts = {
        "rows": options.rows,
        "lists": options.lists,
        "cores": workers,
        "slack": chosen.slack,
        "short_slack": chosen.short_slack,
        "width": chosen.width,
        "radius": chosen.radius,
        "imbalance": float(len(imbalance) * (imbalance**2).sum() / imbalance.sum() ** 2),
        "bare_product_pairs_per_second": rate,
        "turns": TURNS,
        "peak_gb": peak_gb(),
        "machine": cores(),
    }
    table(f"All rows against earlier rows: {options.rows:,} x 128, {options.lists:,} lists", rows)
    write("join", {**facts, "rows_of_table": rows})


if __name__ == "__main__":
    main()
