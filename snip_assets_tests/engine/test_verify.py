"""Pairs in order, each once, wherever their row ids lie."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snip_assets.engine.verify import Pairs, Verifier

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


class Held:
    def __init__(self, *rows: list[float]) -> None:
        self.rows = np.array(rows, np.float16)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.rows[rows.astype(np.int64)]


def test_rows_that_the_net_does_not_see_are_left_to_the_raw_features() -> None:
    snip, raw = Held([0, 0], [0, 0], [0, 1], [0, 0]), Held([2, 0], [4, 0], [0, 1], [0, 3])
    row, earlier = np.array([[1, 0], [2, 0], [3, 0], [3, 2]], np.uint64).T
    candidates = Pairs(row, earlier, np.zeros(4, np.float32))
    places, distance = Verifier(raw, snip, 0.1, 0.05)(candidates)
    assert places.tolist() == [0, 3]
    assert distance.tolist() == [0, 0]
    # By themselves they say nothing.
    assert not len(Verifier(None, snip, 0.1, 0.05)(candidates)[0])
