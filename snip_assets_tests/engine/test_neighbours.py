"""Near rows, of any length or unit length, against brute force."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from snip_assets.engine.features import Features
from snip_assets.engine.kernels.whole_rows import STEPS
from snip_assets.engine.neighbours import near_rows, near_sample


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


def test_a_sample_has_the_nearest_and_stands_for_all(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x = (
        random.normal(size=(6000, 16))
        + 3 * random.normal(size=(20, 16))[random.integers(0, 20, 6000)]
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    cuts = np.array([0, 2500, 6000])
    for number, (low, high) in enumerate(pairwise(cuts)):
        np.save(tmp_path / f"{number}.npy", x[low:high])
    features = Features([tmp_path / f"{n}.npy" for n in range(2)], cuts)
    queries, limit, most = np.arange(0, 6000, 5), 0.3, 4000

    def wanted(query: np.ndarray, row: np.ndarray) -> np.ndarray:
        return ((x[query] - x[row]).astype(np.float64) ** 2).sum(1) > 0.1

    # Exact copies, say: the nearest of all, and not wanted.
    every = np.stack(near_rows(features, queries, limit, [0, 1], "search"))
    every = every[:, wanted(*every)]
    assert every.shape[1] > 5 * most

    def sample(ordinals: list[int], workers: int, most: int) -> np.ndarray:
        found = near_sample(
            features, queries, limit, ordinals, "s", workers, most=most, wanted=wanted
        )
        return np.stack([found.query, found.row, found.weight])

    found = sample([0, 1], 1, most)
    assert (sample([1, 0], 2, most) == found).all()
    assert np.isclose(found[2].sum(), every.shape[1])
    wide = x.astype(np.float64)

    def apart(ends: np.ndarray) -> np.ndarray:
        query, row = ends.astype(int)
        return ((wide[query] - wide[row]) ** 2).sum(1)

    nearest = found[:2, found[2] == 1]
    assert nearest.shape[1] == most
    assert apart(nearest).max() <= np.sort(apart(every))[most - 1] + 1e-4
    # A share of all pairs is told from the sample: here of those in the nearer half.
    half = np.median(apart(every))
    told = found[2][apart(found[:2]) <= half].sum() / every.shape[1]
    assert abs(told - 0.5) < 0.05
    assert (sample([0, 1], 1, every.shape[1])[2] == 1).all()
