"""True pairs for calibration, of rows drawn from all of a data set.

A sample that fits into memory holds few pairs of a large data set, too few to tell where the last
half percent of them lies. So the near rows of a few thousand rows are searched among all others in
the SNIP features, at about a tenth of the work of compression: as in the join, whole coordinates
on a few leading axes throw out nearly everything. A distance on some axes never exceeds that on
all, so nothing is lost; the raw features then decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import shards
from .axes import Axes, leading_axes, scale_of
from .features import as_float32, search_blocks
from .join import scanned
from .run import Run
from .shards import Features
from .verify import distances

QUERIES = 4096
WIDTH = 32
# In the unit of `max_distance`; pairs lie nearer than that in the SNIP features.
NEAR = 3.0
# Coordinates are rounded to steps.
ROUNDING = 1.05
MOST_CHECKED = 1 << 18


@dataclass
class KnownPairs:
    """Near rows, true pairs and others, that need not be in the sample.

    Attributes
    ----------
    snip
        float32[n, dim], SNIP features of their rows, ascending by row id.
    later, earlier
        int64[m], positions in `snip`; nearer than `NEAR` times `max_distance` there.
    true
        bool[m], whether the raw features are within `max_distance`.
    """

    snip: np.ndarray
    later: np.ndarray
    earlier: np.ndarray
    true: np.ndarray


def snip_neighbours(
    features: Features, queries: np.ndarray, limit: float, ordinals: list[int], workers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """All rows within a squared distance of some rows in SNIP features, by exact search.

    Memory: the queries, and a block of 4,096 rows a thread.

    Parameters
    ----------
    queries
        int64[q], row ids.
    ordinals
        Shards to search.

    Returns
    -------
    query, row : int64[m]
        Row ids, the query itself left out.
    """
    x = as_float32(features.take(queries))
    mean = x.mean(0, keepdims=True)
    leading = leading_axes(x - mean, min(WIDTH, x.shape[1]))
    axes = Axes(leading, scale_of(x - mean, leading))
    origin = axes.project(mean)[0]
    short = axes.coordinates(axes.project(x), origin)
    bound = -short[:, -1] - np.float32(0.5 * axes.steps(ROUNDING * limit))
    short[:, -1] = 1
    error = np.zeros(len(x), np.float32)

    def work(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = as_float32(block)
        listed = axes.coordinates(axes.project(rows), origin)
        stop = np.full(len(x), len(rows))
        hits = list(scanned(listed, short, bound, stop, (x, rows, error, np.float32(limit))))
        query = np.concatenate([queries[:0], *(queries[h.query] for h in hits)])
        return query, np.concatenate([queries[:0], *(h.row for h in hits)])

    return search_blocks(features, ordinals, work, "search for known pairs", workers)


def known_pairs(run: Run, rows: np.ndarray) -> KnownPairs | None:
    """What is near some of these rows among all others; None without true pairs."""
    registry, settings = run.registry, run.settings
    draw = np.random.default_rng(settings.seed)
    queries = np.sort(draw.choice(rows, min(QUERIES, len(rows)), replace=False))
    snip = shards.snip_features(run.layout, registry)
    ready = [s.ordinal for s in run.hashed()]
    limit = NEAR * settings.max_distance
    query, row = snip_neighbours(snip, queries, limit, ready, settings.workers)
    if len(query) > MOST_CHECKED:
        some = np.sort(draw.choice(len(query), MOST_CHECKED, replace=False))
        query, row = query[some], row[some]
    distinct = run.hashes(query) != run.hashes(row)
    query, row = query[distinct], row[distinct]
    true = distances(shards.raw_features(registry), query, row) <= settings.max_distance
    if not true.any():
        return None
    names, place = np.unique(np.concatenate([query, row]), return_inverse=True)
    ends, first = np.unique(np.sort(place.reshape(2, -1), axis=0), axis=1, return_index=True)
    return KnownPairs(as_float32(snip.take(names)), ends[1], ends[0], true[first])
