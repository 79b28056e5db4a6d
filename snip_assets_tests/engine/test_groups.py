"""Groups against scipy's connected components."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from snip_assets.engine import pair_files
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.groups import extend, group

from .pair_tools import write_pairs

DISTANCES = [0.0, 0.02, 0.05, 0.1, 0.2]


def reference(pairs, rows, most=np.inf):
    """Smallest row id of the component of each row, by scipy."""
    inside = [p for p in pairs if np.float32(p[2]) <= np.float32(most)]
    ends = np.array([p[:2] for p in inside], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(rows, rows))
    _, labels = connected_components(graph, directed=False)
    smallest = np.full(rows, rows)
    np.minimum.at(smallest, labels, np.arange(rows))
    return smallest[labels]


@st.composite
def graphs(draw, most_rows=30):
    rows = draw(st.integers(2, most_rows))
    ends = st.tuples(st.integers(0, rows - 1), st.integers(0, rows - 1))
    chosen = draw(st.lists(ends.filter(lambda e: e[0] != e[1]), max_size=2 * rows))
    unique = sorted({(max(e), min(e)) for e in chosen})
    return rows, [(a, b, draw(st.sampled_from(DISTANCES))) for a, b in unique]


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from([None, 0.0, 0.05, 0.1]), st.randoms(), st.integers(1, 4))
def test_any_order_and_any_files_give_the_components_of_scipy(
    tmp_path_factory, graph, most, random, files
):
    folder = tmp_path_factory.mktemp("pairs")
    rows, pairs = graph
    random.shuffle(pairs)
    paths = [write_pairs(folder / f"{i}.parquet", pairs[i::files], 3) for i in range(files)]
    labels = extend(None, paths, rows, most)
    assert labels.dtype == np.uint32
    expected = reference(pairs, rows, np.inf if most is None else most)
    np.testing.assert_array_equal(labels, expected)


@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(0, 30), st.booleans())
def test_adding_shard_by_shard_equals_from_scratch(tmp_path_factory, graph, cut, wide):
    folder = tmp_path_factory.mktemp("pairs")
    rows, pairs = graph
    cut = min(cut, rows)
    old = write_pairs(folder / "old.parquet", [p for p in pairs if p[0] < cut])
    new = write_pairs(folder / "new.parquet", [p for p in pairs if p[0] >= cut])
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr("snip_assets.engine.groups.row_dtype", lambda rows: np.uint64)
        former = extend(None, [old], cut)
        before = former.copy()
        np.testing.assert_array_equal(extend(former, [new], rows), extend(None, [new, old], rows))
        np.testing.assert_array_equal(former, before)


def test_two_giant_groups_joined_by_one_late_pair(tmp_path):
    half = 100_000
    chain = np.arange(1, half)
    star = np.arange(half + 1, 2 * half)
    first = write_pairs(tmp_path / "1.parquet", (chain, chain - 1, np.zeros(half - 1)))
    second = write_pairs(tmp_path / "2.parquet", (star, np.full(half - 1, half), chain * 0))
    late = write_pairs(tmp_path / "3.parquet", [(2 * half, half - 1, 0.05), (2 * half, 150_000, 0)])
    labels = extend(None, [first, second], 2 * half)
    assert set(np.unique(labels)) == {0, half}
    group([first, second], 2 * half, tmp_path / "labels.npy")
    group([late], 2 * half + 1, tmp_path / "all.npy", former=tmp_path / "labels.npy")
    assert not np.load(tmp_path / "all.npy").any()


def test_row_ids_choose_their_type():
    assert pair_files.row_dtype(2**32 - 1) is np.uint32
    assert pair_files.row_dtype(2**32) is np.uint64


@pytest.mark.parametrize(
    ("pair", "message"),
    [((9, 1, 0.0), "pair 1 joins row 9"), ((1, 1, 0.0), "among 9 rows"), ((1, 2, 0.0), "row 2")],
)
def test_a_pair_that_cannot_be_is_named(tmp_path, pair, message):
    path = write_pairs(tmp_path / "a.parquet", [(3, 2, 0.0), pair])
    with pytest.raises(BadInputError, match=f"{re.escape(str(path))}.*{message}"):
        extend(None, [path], 9)


def test_files_that_are_no_pairs_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    with pytest.raises(BadInputError, match=r"a.parquet.*make the pairs again"):
        extend(None, [tmp_path / "a.parquet"], 9)
    with pytest.raises(BadInputError, match="no such file"):
        extend(None, [tmp_path / "b.parquet"], 9)
    with pytest.raises(BadInputError, match="labels of another data set"):
        extend(np.zeros(10, np.uint32), [], 9)
