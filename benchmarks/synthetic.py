"""Synthetic features: clusters on the sphere with a heavy tail, and planted near-duplicates.

A row is a common direction + the centre of its cluster + noise of its own, normalised. Cluster
sizes follow a power law (rank^-0.5 over 4,096 clusters), which gives k-means lists an imbalance
near 1.75. The noise lies in a subspace of decaying variance (1/k^0.4), as real features do. Every
fourth row is a copy of an earlier row of its shard or of the shard before, moved by a random step
so that the squared distance to its source is uniform in (0, 0.2): about half of the planted pairs
are within 0.1. One in ten of those is an exact copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLUSTERS = 4096
PLANTED = 0.25
EXACT = 0.1


@dataclass(frozen=True)
class Generator:
    """Makes shards of rows; the same for the same seed, each shard on its own.

    Attributes
    ----------
    dim
        Numbers of a row.
    rows_per_shard
        Rows of a shard.
    """

    dim: int
    rows_per_shard: int
    seed: int = 0

    def _world(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, 1])
        scale = (np.arange(1, self.dim + 1) ** -0.4).astype(np.float32)
        scale /= np.linalg.norm(scale)
        common = random.normal(size=self.dim).astype(np.float32)
        common /= np.linalg.norm(common)
        centres = random.normal(size=(CLUSTERS, self.dim)).astype(np.float32) * scale
        share = np.arange(1, CLUSTERS + 1) ** -0.5
        return common, centres, scale, np.cumsum(share / share.sum())

    def shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a shard, and the source of each.

        Returns
        -------
        rows : float16[n, dim], unit length
        source : int64[n]
            Row in the same shard it was planted from, -1 when it was not planted.
        """
        common, centres, scale, ends = self._world()
        random = np.random.default_rng([self.seed, 2, number])
        n = self.rows_per_shard
        cluster = np.searchsorted(ends, random.random(n))
        x = random.standard_normal((n, self.dim), np.float32) * scale
        x *= 0.75
        x += centres[np.minimum(cluster, CLUSTERS - 1)]
        x += 0.8 * common
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        source = np.full(n, -1, np.int64)
        planted = np.flatnonzero(random.random(n) < PLANTED)
        planted = planted[planted > n // 8]
        source[planted] = (random.random(len(planted)) * (planted // 2)).astype(np.int64)
        planted = planted[source[source[planted]] < 0]
        source[np.setdiff1d(np.flatnonzero(source >= 0), planted)] = -1
        self._move(x, source, planted, random)
        return x.astype(np.float16), source

    def _move(
        self, x: np.ndarray, source: np.ndarray, planted: np.ndarray, random: np.random.Generator
    ) -> None:
        wanted = random.random(len(planted)).astype(np.float32) * 0.2
        wanted[random.random(len(planted)) < EXACT] = 0
        for start in range(0, len(planted), 65536):
            part = planted[start : start + 65536]
            base = x[source[part]]
            step = random.standard_normal(base.shape, np.float32)
            step -= (step * base).sum(1, keepdims=True) * base
            step /= np.linalg.norm(step, axis=1, keepdims=True)
            cosine = (1 - wanted[start : start + 65536] / 2)[:, None]
            x[part] = cosine * base + np.sqrt(1 - cosine**2) * step
