"""The external sort against numpy's."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snip_assets.engine.storage.external_sort import (
    PairSorter,
    Sorter,
    ascending,
    distinct,
    sorted_keys,
)


# The nearest keys that are too far apart for 16 bits.
@example([65536, 0], 9, 9)
@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 12) | st.integers(0, 2**64 - 1), max_size=60),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_sorted_and_stable_for_any_buffer(tmp_path_factory, keys, buffer, piece):
    folder = tmp_path_factory.mktemp("runs")
    array = np.array(keys, np.uint64)
    places = np.arange(len(array), dtype=np.uint32)
    alone, carried = Sorter(folder, buffer=buffer), Sorter(folder, np.uint32, buffer)
    for start in range(0, len(array), piece):
        alone.append(array[start : start + piece])
        carried.append(array[start : start + piece], places[start : start + piece])
    np.testing.assert_array_equal(np.concatenate([b[0] for b in alone.blocks()]), np.sort(array))
    blocks = list(carried.blocks())
    order = np.argsort(array, kind="stable")
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks]), places[order])
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks]), array[order])
    assert not list(folder.iterdir())


NUMBERS = st.integers(0, 5) | st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=60), st.booleans())
def test_pairs_whose_seconds_rise_or_not(tmp_path_factory, pairs, rising):
    pairs = sorted(pairs, key=lambda pair: pair[1]) if rising else pairs
    first, second = np.array(pairs, np.uint64).reshape(-1, 2).T
    keys = first << np.uint64(32) | second
    before = keys.copy()
    np.testing.assert_array_equal(sorted_keys(keys), np.sort(keys))
    np.testing.assert_array_equal(keys, before)
    assert not np.shares_memory(sorted_keys(keys), keys)
    sorter = PairSorter(tmp_path_factory.mktemp("runs"), np.uint32)
    sorter.append(first, second)
    found = [pair for block in sorter.blocks() for pair in zip(*map(list, block), strict=True)]
    assert found == sorted(pairs)


@settings(deadline=None)
@given(st.lists(NUMBERS | st.integers(0, 2**63 - 1), max_size=60))
def test_places_in_ascending_order_and_each_number_once(numbers):
    array = np.array(numbers, np.uint64)
    np.testing.assert_array_equal(ascending(array), np.argsort(array, kind="stable"))
    np.testing.assert_array_equal(distinct(array), np.unique(array))
