"""Runs of the stations on the sample, for tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine import shards, stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import checksum
from snip_assets.options import SAMPLE

MADE = ("duplicate_pairs", "duplicate_groups", "dup_bitmap", "deduped_metadata", "drop_list")


def start(root: Path, keys: list[str] | None = None, **changes: object) -> stations.Run:
    layout = Layout(root)
    shards.register(layout, SAMPLE, keys)
    return stations.Run(layout, replace(Settings(), **changes))


def until_pairs(
    run: stations.Run, groups: list[list[str]] | None = None, keys: list[str] | None = None
) -> None:
    keys = keys or run.registry.keys
    stations.clip_features(run, keys)
    stations.snip_model(run)
    stations.snip_features(run, keys)
    stations.trained_index(run)
    stations.index_shards(run, keys)
    stations.snip_index(run)
    for group in groups or [keys]:
        stations.duplicate_pairs(run, group)


def until_published(run: stations.Run) -> None:
    until_pairs(run)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    stations.deduped_metadata(run, run.registry.keys)
    stations.drop_list(run, run.registry.keys)


def contents(root: Path) -> dict[Path, str]:
    """Checksum of each file that pairs lead to."""
    files = [p for name in MADE for p in (root / name).rglob("*") if p.suffix != ".json"]
    return {p.relative_to(root): checksum(p) for p in files if p.is_file()}


def write_shard(folder: Path, key: str, x: np.ndarray) -> None:
    """Features and urls, in one folder."""
    folder.mkdir(exist_ok=True)
    np.save(folder / f"img_emb_{key}.npy", x)
    urls = [f"http://x/{key}/{row}" for row in range(len(x))]
    pq.write_table(pa.table({"url": urls}), folder / f"metadata_{key}.parquet")


def sampled(count: int, seed: int) -> np.ndarray:
    """Features of random rows of the sample, in their order."""
    every = np.concatenate([np.load(p) for p in sorted(SAMPLE.features.glob("*.npy"))])
    return every[np.sort(np.random.default_rng(seed).choice(len(every), count, replace=False))]


def found_and_true(run: stations.Run, limit: float = 0.1) -> tuple[set, set]:
    """Pairs, and what brute force says, of first copies."""
    raw = np.concatenate([np.load(s.features) for s in run.registry.shards])
    unit = raw.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    later, earlier = np.nonzero(np.tril(2 - 2 * unit @ unit.T <= limit, -1))
    first = np.unique(raw.view(np.uint8), axis=0, return_index=True)[1]
    both = np.isin(later, first) & np.isin(earlier, first)
    true = set(zip(later[both].tolist(), earlier[both].tolist(), strict=True))
    found: set = set()
    for key in run.registry.keys:
        pairs = read_pairs(run.layout.duplicate_pairs(key))
        found |= set(zip(pairs.row.tolist(), pairs.earlier_row.tolist(), strict=True))
    return found, true


def paired(folder: Path) -> stations.Run:
    """A run over the shards that lie in a folder, as far as their pairs."""
    layout = Layout(folder / "out")
    shards.register(layout, shards.Source(folder, folder))
    run = stations.Run(layout, Settings())
    until_pairs(run)
    return run
