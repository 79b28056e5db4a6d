"""Runs of kept rows, block by block, against numpy."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snip_assets.engine import representatives


# A row whose dropped ones go on in the next block, and in the one after it.
@example([1, 1, 1, 5, 2])
@example([3, 20, 1])
@settings(deadline=None)
@given(st.lists(st.integers(1, 17), max_size=20))
def test_runs_are_what_numpy_counts(sizes: list[int]) -> None:
    kept_rows = np.repeat(np.arange(len(sizes), dtype=np.uint64) * 3, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representatives, "READ_ROWS", 7)
        patch.setattr(representatives, "BATCH_ROWS", 4)
        found = list(representatives.runs(kept_rows))
    assert all(len(rows) % 4 == 0 for rows, _ in found[:-1])
    expected = np.unique(kept_rows, return_counts=True)
    for ours, theirs in zip(zip(*found, strict=True), expected, strict=bool(sizes)):
        np.testing.assert_array_equal(np.concatenate(ours), theirs)
