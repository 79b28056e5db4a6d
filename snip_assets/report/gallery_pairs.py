"""Pairs to judge by eye: random ones, and those just inside and just outside the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from snip_assets.engine import audit, shards
from snip_assets.engine.features import Features
from snip_assets.engine.notes import note, noted
from snip_assets.engine.pair_files import PairBlock, stream
from snip_assets.engine.run import Run
from snip_assets.engine.sample import random_shards, splitmix64
from snip_assets.engine.storage.files import digest_of
from snip_assets.engine.truth import exact_neighbours
from snip_assets.engine.verify import distances

from .site_data import pair_files

RANDOM_PAIRS, BORDERLINE = 60, 30
# Rows that near misses are looked for, and rows that they are looked for in, about.
QUERIES, MOST_SEARCHED = 1_600, 250_000
# How far from the threshold a borderline pair may lie, as a share of it: first the nearest.
REACHES = (0.1, 0.25, 0.5)
Kind = Literal["random", "inside", "outside"]


@dataclass(frozen=True)
class Pair:
    """Two rows side by side.

    Attributes
    ----------
    distance
        As it was found: raw, or at a tier without raw features on its scale.
    raw
        What a mark is about: rows that lie at another distance later are others.
    mark
        A reviewer's earlier judgement.
    random
        Whether it is in the random sample, on whichever page it is shown.
    """

    row: int
    earlier_row: int
    distance: float
    raw: float
    kind: Kind
    mark: str = ""
    random: bool = False

    @property
    def sampled(self) -> Kind:
        """What a mark of it counts for."""
        return "random" if self.random else self.kind


class _Drawn:
    """The pairs with the lowest tickets of all that are added: a random sample of them."""

    def __init__(self, count: int) -> None:
        self.count, self._ticket = count, np.empty(0, np.uint64)
        rows = np.empty(0, np.int64)
        self.pairs = PairBlock(rows, rows, np.empty(0, np.float32))

    def add(self, ticket: np.ndarray, pairs: PairBlock) -> None:
        """Add some."""
        full = len(self._ticket) >= self.count > 0
        low = np.flatnonzero(ticket < self._ticket[-1]) if full else slice(None)
        ticket = np.append(self._ticket, ticket[low])
        first = np.argsort(ticket, kind="stable")[: self.count]
        self._ticket = ticket[first]
        both = zip(self.pairs, pairs, strict=True)
        self.pairs = PairBlock(*(np.append(own, new[low])[first] for own, new in both))


def random_and_inside(
    run: Run, random: int = RANDOM_PAIRS, inside: int = BORDERLINE
) -> tuple[list[Pair], list[Pair]]:
    """A random sample of all pairs, and one of those at the threshold or little less.

    The former is in random order, so that any first part of it is one too; the latter by distance,
    the farthest first. What was drawn stays, so do marks on it: of n pairs that come to N others,
    a share of n / (n + N) takes the place of another. All pairs are gone over once.
    """
    most, seed = run.settings.max_distance, run.settings.seed
    every, near = _Drawn(random), {reach: _Drawn(inside) for reach in REACHES}
    for block in stream(pair_files(run), run.registry.rows, "pairs to show"):
        ticket = _ticket(block.row, block.earlier_row, seed)
        every.add(ticket, block)
        for reach, drawn in near.items():
            some = np.flatnonzero(block.distance >= most * (1 - reach))
            drawn.add(ticket[some], PairBlock(*(a[some] for a in block)))
    rows, earlier, _ = every.pairs
    raw = shards.raw_features(run.registry)
    far = distances(raw, rows, earlier)
    shown = [_pair(*one, "random") for one in zip(rows, earlier, far, far, strict=True)]
    enough = (d.pairs for d in near.values() if len(d.pairs.row) >= inside)
    rows, earlier, far = next(enough, near[REACHES[-1]].pairs)
    measured = distances(raw, rows, earlier)
    order = np.lexsort((rows, -far))
    return shown, [_pair(rows[i], earlier[i], far[i], measured[i], "inside") for i in order]


def just_outside(run: Run, count: int = BORDERLINE) -> list[Pair]:
    """Near misses of random rows, by exact search of the raw features, the nearest first.

    Looks in all shards with pairs, or in random ones of a quarter of a million rows: these are
    mostly the same when others arrive, and then what was found in them is not searched for again.
    """
    # A shard without pairs may be one that was refused: its file may have other rows, or none.
    some = random_shards(audit.with_pairs(run), MOST_SEARCHED, "audited", run.settings.seed)
    read = [(s.key, s.start, run.version("clip_features", s.key)) for s in some]
    limits = run.settings.max_distance, run.settings.seed, count, QUERIES, REACHES
    subject = digest_of([read, limits])
    if (found := noted(run.layout.near_misses, subject)) is None:
        found = _search_outside(run, some, count)
        note(run.layout.near_misses, subject, found)
    return [_pair(row, earlier, far, far, "outside") for row, earlier, far in found]


def _search_outside(run: Run, some: list[shards.Shard], count: int) -> list[tuple[int, int, float]]:
    """Later row, earlier row and distance of each near miss."""
    offsets = np.cumsum([0, *(s.rows for s in some)], dtype=np.int64)
    raw = Features([s.features for s in some], offsets)
    ids = _Ids(offsets, np.array([s.start for s in some], np.int64))
    most, seed = run.settings.max_distance, run.settings.seed
    generator = np.random.default_rng(seed)
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
    chosen = miss[np.argsort(_ticket(later[miss], earlier[miss], seed), kind="stable")[:count]]
    chosen = chosen[np.lexsort((later[chosen], far[chosen]))]
    return [(int(later[i]), int(earlier[i]), float(far[i])) for i in chosen]


class _Ids:
    """Row ids within some of the shards to row ids of the data set."""

    def __init__(self, offsets: np.ndarray, starts: np.ndarray) -> None:
        self.offsets, self.starts = offsets, starts

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self.offsets, rows, "right") - 1
        return rows - self.offsets[at] + self.starts[at]


def _ticket(rows: np.ndarray, earlier: np.ndarray, seed: int) -> np.ndarray:
    """uint64[n]: a random number for each pair that depends on nothing else."""
    mixed = splitmix64(earlier.astype(np.uint64) ^ splitmix64(np.array([seed], np.uint64)))
    return splitmix64(rows.astype(np.uint64) ^ mixed)


def _pair(row: int, earlier: int, distance: float, raw: float, kind: Kind) -> Pair:
    return Pair(int(row), int(earlier), float(distance), float(raw), kind)
