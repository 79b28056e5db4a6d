"""Pairs in order, each once, wherever their row ids lie."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snip_assets.engine.verify import Pairs

WIDE = 1 << 32
ROWS = st.sampled_from([base + more for base in (0, WIDE - 2, WIDE, 3 * WIDE) for more in range(4)])


# Two rows near each other: as one key, the 33rd bit of an earlier row would be one of the later.
@example([(3 * WIDE + 1, 5), (3 * WIDE, WIDE + 7)])
@example([(WIDE + 3, 1), (3, 2)])
@settings(deadline=None)
@given(st.lists(st.tuples(ROWS, ROWS), max_size=40))
def test_pairs_are_ordered_each_once(pairs: list[tuple[int, int]]) -> None:
    row, earlier = np.array(pairs, np.uint64).reshape(-1, 2).T
    distance = {pair: np.float32(place) for place, pair in enumerate(sorted(set(pairs)))}
    given_ = Pairs(row, earlier, np.array([distance[pair] for pair in pairs], np.float32))
    found = given_.ordered()
    assert list(zip(found.row.tolist(), found.earlier_row.tolist(), strict=True)) == list(distance)
    assert found.distance.tolist() == list(distance.values())
