"""Near rows for calibration against brute force."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from snip_assets.engine.features import Features
from snip_assets.engine.known_pairs import snip_neighbours


def test_no_near_row_is_missed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 64)) * np.arange(1, 65) ** -0.5 + 0.3
    near = random.integers(0, 3000, 900)
    x[random.permutation(3000)[:900]] = x[near] + random.normal(size=(900, 64)) * 0.05
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    cuts = np.array([0, 1200, 1200, 3000])
    for number, (low, high) in enumerate(pairwise(cuts)):
        np.save(tmp_path / f"{number}.npy", x[low:high])
    features = Features([tmp_path / f"{n}.npy" for n in range(3)], cuts)
    queries, limit = np.arange(0, 3000, 7), 0.15
    query, row = snip_neighbours(features, queries, limit, [0, 1, 2])
    wide = x.astype(np.float64)
    far = cdist(wide[queries], wide, "sqeuclidean")
    far[np.arange(len(queries)), queries] = np.inf
    found = set(zip(query.tolist(), row.tolist(), strict=True))
    must = {(int(queries[i]), int(j)) for i, j in np.argwhere(far <= limit - 1e-5)}
    may = {(int(queries[i]), int(j)) for i, j in np.argwhere(far <= limit + 1e-5)}
    assert len(must) > 100
    assert must <= found <= may
