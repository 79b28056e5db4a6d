"""The nearest lists and the nearest words, against looking at all of them."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snip_assets.engine.assign import Assigner, _last_of_best
from snip_assets.engine.kernels.list_scores import LOWEST, Scorer
from snip_assets.engine.kernels.registers import LANES
from snip_assets.engine.kernels.whole_rows import write_products
from snip_assets.engine.trained import TrainedIndex


@settings(deadline=None)
@given(
    columns=st.integers(1, 150),
    count=st.integers(1, 40),
    steps=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_the_least_of_the_largest_scores(columns: int, count: int, steps: int, seed: int) -> None:
    count = min(count, columns)
    score = np.random.default_rng(seed).integers(-steps, steps, (7, columns)).astype(np.float32)
    full = np.full((7, -(-columns // LANES) * LANES), LOWEST)
    full[:, :columns] = score
    room = np.empty(LANES, np.float32), np.empty(count, np.float32)
    found = [_last_of_best(full, i, *room) for i in range(7)]
    np.testing.assert_array_equal(found, np.sort(score, axis=1)[:, -count])


@settings(deadline=None, max_examples=30)
@given(
    lists=st.integers(1, 200),
    dim=st.integers(1, 130),
    spread=st.sampled_from([1e-4, 0.05, 1.0]),
    seed=st.integers(0, 9),
)
@example(lists=2, dim=1024, spread=1.0, seed=0).via("the largest sums there can be")
def test_a_score_is_no_further_off_than_its_error(
    lists: int, dim: int, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((50, dim)) + 0.5
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[::10] = np.eye(dim)[0]
    centroids = x[random.integers(0, 50, lists)] + spread * random.standard_normal((lists, dim))
    centroids = centroids.astype(np.float32) / max(1, np.abs(centroids).max())
    rows = Scorer(centroids)(x.astype(np.float32))
    score = np.empty((len(rows.whole), len(rows.scale)), np.float32)
    write_products(rows.panels, rows.whole, rows.scale, rows.bias, score)
    around = centroids.astype(np.float64) - centroids.mean(0)
    exact = (x - centroids.mean(0)) @ around.T - 0.5 * (around**2).sum(1)
    assert (np.abs(score[:50, :lists] - exact) <= rows.error[:, None]).all()
    assert (score[:50, lists:] < -1e37).all()


@settings(deadline=None, max_examples=20)
@given(
    lists=st.integers(1, 200),
    dim=st.integers(2, 130),
    count=st.sampled_from([1, 5, 60]),
    seed=st.integers(0, 9),
)
def test_the_nearest_lists(lists: int, dim: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, centroids = random.standard_normal((300, dim)), 0.8 * random.standard_normal((lists, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids /= dim**0.5
    found = Assigner(centroids).nearest(x.astype(np.float32), min(count, lists))
    distance = np.sort(((x[:, None] - centroids.astype(np.float32)) ** 2).sum(2), axis=1)
    np.testing.assert_allclose(found[1], distance[:, :count], atol=1e-6)


def test_the_nearest_of_many_lists() -> None:
    random = np.random.default_rng(0)
    x, centroids = (random.standard_normal((n, 24)).astype(np.float32) for n in (10, 70_000))
    x, centroids = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, centroids))
    centroids[60_000:60_010] = x
    distance = ((x.astype(np.float64)[:, None] - centroids) ** 2).sum(2)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :40]
    assigner = Assigner(centroids)
    np.testing.assert_array_equal(assigner.nearest(x, 40)[0], nearest)
    np.testing.assert_array_equal(assigner.probed(x, 5, 0.02)[0], nearest[:, 0])


@settings(deadline=None, max_examples=30)
@given(
    lists=st.integers(1, 200),
    dim=st.integers(2, 130),
    radius=st.sampled_from([0.0, 0.01, 0.1, 3.0]),
    count=st.sampled_from([1, 5, 60]),
    seed=st.integers(0, 9),
)
@example(lists=89, dim=29, radius=0.1, count=5, seed=1).via("a margin of 0.1 and 1e-8")
def test_the_probed_lists_are_those_within_the_margin(
    lists: int, dim: int, radius: float, count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, centroids = random.standard_normal((300, dim)), 0.8 * random.standard_normal((lists, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids[lists // 2] = centroids[0]
    x, centroids = x.astype(np.float32), (centroids / dim**0.5).astype(np.float32)
    assigner = Assigner(centroids)
    near, distance = assigner.nearest(x, min(count, lists))
    row, rank = np.nonzero(assigner.margins(near, distance) <= radius)
    home, found_row, found = assigner.probed(x, count, radius)
    np.testing.assert_array_equal(home, near[:, 0])
    np.testing.assert_array_equal(found_row, row)
    assert set(zip(found_row, found, strict=True)) == set(zip(row, near[row, rank], strict=True))
    # Home is the first of each row.
    np.testing.assert_array_equal(found[np.unique(found_row, return_index=True)[1]], home)


def test_a_code_names_the_nearest_word_of_each_part() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    codec = TrainedIndex.train(x, 4, "PQ8").codec
    assert codec.book is not None
    parts = x.reshape(len(x), *codec.book.shape[::2]).astype(np.float64)
    distance = ((parts[:, :, None] - codec.book[None]) ** 2).sum(3)
    chosen = np.take_along_axis(distance, codec.encode(x)[:, :, None].astype(int), 2)[:, :, 0]
    assert (chosen - distance.min(2) < 1e-5).all()
