"""Pairs to judge by eye: random ones, and those just inside and just outside the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from snip_assets.engine import audit, shards
from snip_assets.engine.files import read_manifest
from snip_assets.engine.pair_files import stream
from snip_assets.engine.run import Run
from snip_assets.engine.sample import splitmix64
from snip_assets.engine.shards import Features, Shard
from snip_assets.engine.truth import exact_neighbours
from snip_assets.engine.verify import distances

RANDOM_PAIRS, BORDERLINE = 60, 30
# Rows that near misses are looked for, and rows that they are looked for in, at the most.
QUERIES, MOST_SEARCHED = 1_600, 250_000
# How far from the threshold a borderline pair may lie, as a share of it: first the nearest.
REACHES = (0.1, 0.25, 0.5)
Kind = Literal["random", "inside", "outside"]


@dataclass(frozen=True)
class Pair:
    """Two rows side by side; `distance` is raw, `mark` a reviewer's earlier judgement."""

    row: int
    earlier_row: int
    distance: float
    kind: Kind
    mark: str = ""


def random_pairs(run: Run, count: int = RANDOM_PAIRS) -> list[Pair]:
    """A random sample of the pairs, in random order, so that any first part is one too."""
    rows, earlier = audit.sample_pairs(run, count, run.settings.seed)
    far = distances(shards.raw_features(run.registry), rows, earlier)
    order = np.argsort(_ticket(rows, earlier), kind="stable")
    return [_pair(rows[i], earlier[i], far[i], "random") for i in order]


def just_inside(run: Run, count: int = BORDERLINE) -> list[Pair]:
    """Random pairs whose distance is the threshold or little less, the farthest first."""
    files = [
        path
        for key in run.registry.keys
        if read_manifest(path := run.layout.duplicate_pairs(key)) is not None
    ]
    most = run.settings.max_distance
    for reach in REACHES:
        rows, earlier = np.empty((2, 0), np.int64)
        far = np.empty(0, np.float32)
        for block in stream(files, run.registry.rows, "borderline pairs"):
            near = np.flatnonzero(block.distance >= most * (1 - reach))
            rows = np.append(rows, block.row[near])
            earlier = np.append(earlier, block.earlier_row[near])
            far = np.append(far, block.distance[near])
            first = np.argsort(_ticket(rows, earlier), kind="stable")[:count]
            rows, earlier, far = rows[first], earlier[first], far[first]
        if len(rows) >= count:
            break
    order = np.lexsort((rows, -far))
    return [_pair(rows[i], earlier[i], far[i], "inside") for i in order]


def just_outside(run: Run, count: int = BORDERLINE) -> list[Pair]:
    """Near misses of random rows, by exact search of the raw features, the nearest first.

    Looks in all shards, or in random ones of a quarter of a million rows.
    """
    raw, ids = _some_features(run)
    most, generator = run.settings.max_distance, np.random.default_rng(run.settings.seed)
    queries = np.sort(generator.choice(len(raw), min(QUERIES, len(raw)), replace=False))
    limit = most * (1 + REACHES[-1])
    query, row = exact_neighbours(raw, queries, limit, run.settings.workers)
    ends = np.unique(np.sort(np.stack([query, row]), axis=0), axis=1)
    far = distances(raw, ends[1], ends[0])
    later, earlier = ids(ends[1]), ids(ends[0])
    for reach in REACHES:
        miss = np.flatnonzero((far > np.float32(most)) & (far <= most * (1 + reach)))
        if len(miss) >= count:
            break
    chosen = miss[np.argsort(_ticket(later[miss], earlier[miss]), kind="stable")[:count]]
    chosen = chosen[np.lexsort((later[chosen], far[chosen]))]
    return [_pair(later[i], earlier[i], far[i], "outside") for i in chosen]


class _Ids:
    """Row ids within some of the shards to row ids of the data set."""

    def __init__(self, offsets: np.ndarray, starts: np.ndarray) -> None:
        self.offsets, self.starts = offsets, starts

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self.offsets, rows, "right") - 1
        return rows - self.offsets[at] + self.starts[at]


def _some_features(run: Run) -> tuple[Features, _Ids]:
    generator = np.random.default_rng(run.settings.seed)
    chosen: list[Shard] = []
    rows = 0
    for ordinal in generator.permutation(len(run.registry.shards)):
        shard = run.registry.shards[ordinal]
        if chosen and rows + shard.rows > MOST_SEARCHED:
            break
        chosen.append(shard)
        rows += shard.rows
    chosen.sort(key=lambda shard: shard.ordinal)
    offsets = np.cumsum([0, *(s.rows for s in chosen)], dtype=np.int64)
    starts = np.array([s.start for s in chosen], np.int64)
    return Features([s.features for s in chosen], offsets), _Ids(offsets, starts)


def _ticket(rows: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """A random number for each pair that depends on nothing else."""
    return splitmix64(rows.astype(np.uint64) ^ splitmix64(earlier.astype(np.uint64)))


def _pair(row: int, earlier: int, distance: float, kind: Kind) -> Pair:
    return Pair(int(row), int(earlier), float(distance), kind)
