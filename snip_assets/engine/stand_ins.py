"""Stand-ins for true pairs, where a data set has too few of its own to calibrate with.

A row is moved towards another one until it is as far from where it was as the rows of a pair may
be. The other one is the nearest that is known, so that both ends lie where rows of this data set
lie. Where the raw features are at hand, their distance tells what a raw distance is in the SNIP
features.
"""

from __future__ import annotations

import numpy as np

from .calibration import Sample
from .exact import nearest_other
from .features import normalised
from .known_pairs import KnownPairs

FEWEST_NEAR = 256


def stand_ins(
    sample: Sample,
    known: KnownPairs | None,
    queries: np.ndarray,
    max_distance: float,
    seed: int,
    workers: int = 0,
) -> np.ndarray:
    """Rows, and the same rows moved, by any distance up to `max_distance`.

    Parameters
    ----------
    known
        Near rows, if they were searched for.
    queries
        int64[m], positions in the sample of the rows to move otherwise.

    Returns
    -------
    float32[2 m, dim]
        SNIP features: the rows, then the moved ones.
    """
    random = np.random.default_rng(seed)
    if known is not None and len(known.later) >= FEWEST_NEAR:
        some = random.permutation(len(known.later))[: len(queries)]
        x, other = known.snip[known.later[some]], known.snip[known.earlier[some]]
        apart = ((other - x) ** 2).sum(1)
    elif sample.raw is not None and len(sample.raw) > 1:
        near, apart = nearest_other(sample.raw, queries, workers)
        x, other = sample.snip[queries], sample.snip[near]
    else:
        x = sample.snip[queries]
        other = sample.snip[random.integers(0, len(sample.snip), len(queries))]
        apart = ((other - x) ** 2).sum(1)
    wanted = max_distance * random.random(len(x))
    share = np.sqrt(np.minimum(1.0, wanted / np.maximum(apart, 1e-12)))
    moved = x + share[:, None].astype(np.float32) * (other - x)
    return np.concatenate([x, normalised(moved)])
