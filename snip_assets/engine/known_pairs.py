"""True pairs for calibration, of rows drawn from all of a data set.

A sample that fits into memory holds few pairs of a large data set, too few to tell where the last
half percent of them lies. So the near rows of a few thousand rows are searched among all others in
the SNIP features; the raw features then decide. Where there are many rows, a quarter of them is
searched for those of four times as many: about as many pairs at the same work, and a quarter is
read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import choices, shards
from .features import as_float32
from .neighbours import near_sample
from .run import Run
from .sample import random_shards, rows_of
from .verify import distances

# Rows whose pairs are searched for, if among all rows.
QUERIES = 4096
# In the unit of `max_distance`; pairs lie nearer than that in the SNIP features.
NEAR_FACTOR = 3.0
# Nearest pairs, among which the true ones are, and others beside them. What is near grows with the
# rows: at 99 million, a random sample of twice as many held 42 of the 861 true pairs found so.
MOST_CHECKED = 1 << 17


@dataclass
class KnownPairs:
    """Near rows, true pairs and others, that need not be in the sample.

    Attributes
    ----------
    snip
        float32[n, dim], SNIP features of their rows, ascending by row id.
    later, earlier
        int64[m], positions in `snip`; nearer than `NEAR_FACTOR` times `max_distance` there.
    true
        bool[m], whether the raw features are within `max_distance`.
    weight
        float64[m], how many near pairs each stands for.
    """

    snip: np.ndarray
    later: np.ndarray
    earlier: np.ndarray
    true: np.ndarray
    weight: np.ndarray


def known_pairs(run: Run, rows: np.ndarray) -> KnownPairs | None:
    """What is near some of these rows among all others; None without true pairs."""
    registry, settings = run.registry, run.settings
    ready = run.hashed()
    searched = choices.searched_rows(rows_of(ready), QUERIES)
    some = random_shards(ready, searched, "calibrated", settings.seed)
    share = rows_of(some) / rows_of(ready)
    draw = np.random.default_rng(settings.seed)
    queries = np.sort(draw.choice(rows, min(round(QUERIES / share), len(rows)), replace=False))
    snip = shards.snip_features(run.layout, registry)
    limit = NEAR_FACTOR * settings.max_distance
    title = "search for known pairs"
    near = near_sample(
        snip,
        queries,
        limit,
        [s.ordinal for s in some],
        title,
        settings.workers,
        most=MOST_CHECKED,
        wanted=lambda one, other: run.hashes(one) != run.hashes(other),
    )
    query, row, weight = near.query, near.row, near.weight / share
    if not len(query):
        return None
    true = distances(shards.raw_features(registry), query, row) <= settings.max_distance
    if not true.any():
        return None
    names, place = np.unique(np.concatenate([query, row]), return_inverse=True)
    ends, first = np.unique(np.sort(place.reshape(2, -1), axis=0), axis=1, return_index=True)
    return KnownPairs(as_float32(snip.take(names)), ends[1], ends[0], true[first], weight[first])
