"""How good: pairs, tiers and nearest neighbours against exact search in the raw features.

    python benchmarks/quality.py --data FOLDER [--codecs PQ4,PQ8,PQ16] [--out FOLDER]

FOLDER has img_emb/ and metadata/. Runs the stations, then compares with brute force over all rows.
Prints tables and writes benchmarks/results/quality.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import cores, table, write

from snip_assets.engine import index, shards, stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.truth import exact_neighbours

K = 10


def run_stations(run: stations.Run) -> None:
    keys = run.registry.keys
    stations.metadata(run, keys)
    stations.clip_features(run, keys)
    stations.snip_model(run)
    stations.snip_features(run, keys)
    stations.trained_index(run)
    stations.index_shards(run, keys)
    stations.snip_index(run)
    stations.duplicate_pairs(run, keys)


def found_pairs(run: stations.Run) -> set[int]:
    n = run.registry.rows
    result: set[int] = set()
    for key in run.registry.keys:
        pairs = read_pairs(run.layout.duplicate_pairs(key))
        result.update(
            (pairs.row.astype(np.int64) * n + pairs.earlier_row.astype(np.int64)).tolist()
        )
    return result


def true_pairs(run: stations.Run) -> set[int]:
    """All pairs by brute force: later copies with their first copy, the rest between firsts."""
    n = run.registry.rows
    later, first = np.concatenate([*run.exact_copies(len(run.registry.shards) - 1)], axis=1)
    alone = np.setdiff1d(np.arange(n), later)
    query, row = exact_neighbours(
        shards.raw_features(run.registry), alone, run.settings.max_distance
    )
    is_first = np.zeros(n, bool)
    is_first[alone] = True
    inside = is_first[row] & (row < query)
    return set((query[inside] * n + row[inside]).tolist()) | set((later * n + first).tolist())


def compared(
    run: stations.Run, name: str, found: set[int], true: set[int], size: float
) -> dict[str, Any]:
    """Recall and precision of stored pairs, and with every exact copy counted in.

    A stored pair of first copies stands for the pairs of all copies of both, and a row with c
    copies for the c (c - 1) / 2 pairs among them: that is what brute force over all rows counts.
    """
    n = run.registry.rows
    later, first = np.concatenate([*run.exact_copies(len(run.registry.shards) - 1)], axis=1)
    copies = np.ones(n)
    np.add.at(copies, first, 1)
    among = float((copies * (copies - 1) / 2).sum())
    is_copy = np.zeros(n, bool)
    is_copy[later] = True

    def weight(pairs: set[int]) -> float:
        keys = np.fromiter(pairs, np.int64, len(pairs))
        row, earlier = keys // n, keys % n
        return among + float((copies[row] * copies[earlier])[~is_copy[row]].sum())

    both = found & true
    return {
        "what": name,
        "recall": len(both) / len(true),
        "precision": len(both) / max(len(found), 1),
        "recall, copies counted": weight(both) / weight(true),
        "precision, copies counted": weight(both) / weight(found),
        "pairs": len(found),
        "bytes_per_row": size,
    }


def agreement(run: stations.Run, queries: np.ndarray, exact: np.ndarray) -> list[dict[str, Any]]:
    """Share of the exact k nearest that the index finds, over probes, and after re-ranking."""
    found = index.SnipIndex.open(run.layout).to_faiss()
    snip = shards.snip_features(run.layout, run.registry)
    x = snip.take(queries).astype(np.float32)
    rows = []
    for probes in (1, 4, 16, 64):
        found.nprobe = probes
        hits = found.search(x, 101)[1]
        rows.append({"probes": probes, "index": overlap(hits, queries, exact)})
        candidates = np.where(hits < 0, queries[:, None], hits)
        vectors = snip.take(candidates.ravel()).astype(np.float32).reshape(*hits.shape, -1)
        near = np.argsort(((vectors - x[:, None]) ** 2).sum(2), axis=1, kind="stable")
        ranked = np.take_along_axis(candidates, near, 1)
        rows[-1]["re-ranked with SNIP"] = overlap(ranked, queries, exact)
    return rows


def overlap(hits: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> float:
    total = 0
    for own, query, true in zip(hits, queries, exact, strict=True):
        first = [h for h in own.tolist() if h not in (query, -1)][:K]
        total += len(set(first) & set(true.tolist()))
    return total / (K * len(queries))


def exact_nearest(run: stations.Run, queries: np.ndarray) -> np.ndarray:
    raw = shards.raw_features(run.registry)
    flat = faiss.IndexFlatIP(run.registry.dim)
    for ordinal in range(len(run.registry.shards)):
        x = raw.shard(ordinal).block(0, run.registry.rows).astype(np.float32)
        flat.add(np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True)))
    hits = flat.search(raw.take(queries).astype(np.float32), K + 1)[1]
    return np.array([[h for h in row if h != q][:K] for row, q in zip(hits, queries, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--codecs", default="PQ4,PQ8,PQ16")
    parser.add_argument("--out", type=Path, help="Folder to keep; default: temporary.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.data, options.codecs.split(","), options.out or Path(temporary))


def measure(data: Path, codecs: list[str], out: Path) -> None:
    layout = Layout(out)
    shards.register(layout, shards.Source(data / "img_emb", data / "metadata"))
    rows: list[dict[str, Any]] = []
    near: list[dict[str, Any]] = []
    true: set[int] = set()
    for codec in codecs:
        run = stations.Run(layout, Settings(codec=codec))
        run_stations(run)
        true = true or true_pairs(run)
        size = stations.snip_index(run).facts["bytes_per_row"]
        rows.append(compared(run, f"{codec}, verified with raw", found_pairs(run), true, size))
        for tier, more in (("snip", 2 * run.settings.dim), ("codes", 0)):
            coarse = stations.Run(layout, replace(run.settings, tier=tier))
            stations.duplicate_pairs(coarse, run.registry.keys)
            found = found_pairs(coarse)
            rows.append(compared(run, f"{codec}, {tier} alone", found, true, size + more))
        random = np.random.default_rng(0)
        queries = np.sort(random.choice(run.registry.rows, min(1000, run.registry.rows), False))
        exact = exact_nearest(run, queries)
        near += [{"codec": codec, **row} for row in agreement(run, queries, exact)]
    table(f"Pairs within 0.1: {len(true):,} by brute force, {run.registry.rows:,} rows", rows)
    table("Share of the exact 10 nearest found", near)
    write("quality", {"machine": cores(), "pairs": rows, "nearest": near, "true_pairs": len(true)})


if __name__ == "__main__":
    main()
