"""Near rows, of any length or unit length, against brute force."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from snip_assets.engine.features import Features
from snip_assets.engine.neighbours import near_rows
from snip_assets.engine.whole_rows import STEPS


@pytest.mark.parametrize("dim", [3, 64, 600])
@pytest.mark.parametrize("unit", [False, True])
def test_no_near_row_is_missed(tmp_path: Path, dim: int, unit: bool) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, dim)) * np.arange(1, dim + 1) ** -0.5 + 0.3
    near = random.integers(0, 3000, 900)
    x[random.permutation(3000)[:900]] = x[near] + random.normal(size=(900, dim)) * 0.4 / dim**0.5
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    cuts = np.array([0, 1200, 1200, 3000])
    for number, (low, high) in enumerate(pairwise(cuts)):
        length = random.uniform(0.5, 8, (high - low, 1)) if unit else 1
        np.save(tmp_path / f"{number}.npy", (x[low:high] * length).astype(np.float16))
    features = Features([tmp_path / f"{n}.npy" for n in range(3)], cuts)
    queries, limit = np.arange(0, 3000, 7), 0.15
    query, row = near_rows(features, queries, limit, [0, 1, 2], "search", unit=unit)
    wide = features.take(np.arange(3000)).astype(np.float64)
    if unit:
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    far = cdist(wide[queries], wide, "sqeuclidean")
    far[np.arange(len(queries)), queries] = np.inf
    found = set(zip(query.tolist(), row.tolist(), strict=True))
    must = {(int(queries[i]), int(j)) for i, j in np.argwhere(far <= limit - 1e-5)}
    most = (limit**0.5 + 2 * dim**0.5 / STEPS) ** 2
    may = {(int(queries[i]), int(j)) for i, j in np.argwhere(far <= most + 1e-5)}
    assert len(must) > 100
    assert must <= found <= may
