"""Neighbourhoods hold every row once, and near rows together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine.neighbourhoods import neighbourhoods


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 400),
    size=st.integers(1, 50),
    kinds=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_row_is_in_one_neighbourhood(count: int, size: int, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Many rows are the same.
    rows = rng.integers(0, kinds, (count, 3)).astype(np.float32)
    cut = neighbourhoods(rows, size, rng)
    assert sorted(np.concatenate(cut)) == list(range(count))
    assert max(map(len, cut)) <= size
    assert count <= size or min(map(len, cut)) >= (size + 1) // 2


def test_copies_stay_together_and_cuts_differ() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(100, 8)).astype(np.float32), 3, axis=0)
    cut = neighbourhoods(rows, 40, rng)
    together = sum(len(np.unique(part // 3)) for part in cut)
    assert together < 130
    again, other = neighbourhoods(rows, 40, rng), neighbourhoods(rows, 40, np.random.default_rng(0))
    assert {tuple(sorted(p)) for p in again} != {tuple(sorted(p)) for p in other}


def test_a_half_is_on_one_side_of_the_cut() -> None:
    rows = np.random.default_rng(0).normal(size=(1001, 1)).astype(np.float32)
    one, other = (rows[part, 0] for part in neighbourhoods(rows, 501, np.random.default_rng(1)))
    assert one.max() < other.min() or other.max() < one.min()
