"""How often each row is in an index, against counting one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine import tally


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=30), st.integers(0, 20)), max_size=3),
    st.integers(1, 3),
)
def test_as_counted_one_by_one(rows: int, parts: list[tuple[list[int], int]], threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "BLOCK_ROWS", 3)
        patch.setattr(tally, "count", lambda: threads)
        given = [(np.array(own, np.uint32), start) for own, start in parts]
        times, beyond = tally.tally(given, rows)
    all_rows = [row + start for own, start in parts for row in own]
    counted = np.bincount(np.array([r for r in all_rows if r < rows], int), minlength=rows)
    assert times.tolist() == np.minimum(counted, 2).tolist()
    assert beyond == [n for n, (own, s) in enumerate(parts) if any(r + s >= rows for r in own)]
