"""The precision of a bitmap: what the authors' demo gets wrong must not count."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from snip_assets.engine.audit import wilson
from snip_assets.engine.bitmap import Bitmap
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.holdings import Holdings
from snip_assets.engine.searcher import Searcher
from snip_assets.engine.verify_bitmap import sample_marked, verify_bitmap, write_csv
from snip_assets_tests import mirror as faulty

OFFSETS = np.cumsum([0, *faulty.LENGTHS])


class Exact:
    """Exact search, in the order that ties happen to have: copies may come before the row."""

    def __init__(self, x: np.ndarray, hidden: bool = False) -> None:
        self.x = x.astype(np.float64)
        self.x /= np.linalg.norm(self.x, axis=1, keepdims=True)
        self.dim, self.rows, self.hidden = x.shape[1], len(x), hidden

    def set_probes(self, probes: int) -> None:
        pass

    def search(self, queries: np.ndarray, k: int):
        distance = 2 - 2 * queries.astype(np.float64) @ self.x.T
        ids = np.argsort(distance, axis=1, kind="stable")[:, :k]
        distance = np.take_along_axis(distance, ids, 1)
        if self.hidden:  # as FAISS does when the probed lists hold too few rows
            ids[:], distance[:] = -1, np.inf
        return distance.astype(np.float32), ids.astype(np.int64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    bitmap = faulty.make(folder)
    _, features = faulty.sample_rows()
    holdings = Holdings.of_folders(folder / "metadata", folder / "img_emb", folder / "cum_sz.npy")
    return folder, bitmap, features, holdings


def test_a_true_bitmap_is_confirmed_whole(data, tmp_path):
    folder, bitmap, features, holdings = data
    found = verify_bitmap(folder / "is_dup.npy", Searcher(Exact(features), holdings), tmp_path)
    assert found.sampled == found.judged == found.confirmed == bitmap.sum()
    assert found.precision == 1 and 0.98 < found.low < found.high <= 1
    table = pq.read_table(tmp_path / "pairs.parquet")
    row, other = table["row"].to_numpy(), table["other_row"].to_numpy()
    assert (row != other).all() and (other >= 0).all() and bitmap[row].all()
    x = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1)[:, None]
    assert np.allclose(table["raw_distance"], ((x[row] - x[other]) ** 2).sum(1), atol=1e-5)
    urls = faulty.sample_rows()[0]["url"].to_pylist()
    assert table["url"].to_pylist() == [urls[r] for r in row]
    assert table["other_url"].to_pylist() == [urls[r] for r in other]


def test_a_row_is_never_its_own_duplicate(data, tmp_path):
    """All rows that have no duplicate at all: the authors' demo would count the row itself."""
    _, _, features, holdings = data
    x = Exact(features).x
    near = 2 - 2 * x @ x.T <= 0.1
    alone = near.sum(1) == 1
    np.save(tmp_path / "alone.npy", alone)
    found = verify_bitmap(tmp_path / "alone.npy", Searcher(Exact(features), holdings), tmp_path)
    assert found.judged > 100 and found.confirmed == 0


def test_an_exact_copy_whose_first_hit_is_the_copy_or_itself(data, tmp_path):
    _, _, features, holdings = data
    x = Exact(features).x
    same = (x @ x.T > 1 - 1e-12).sum(1) > 1
    assert same.sum() > 10
    np.save(tmp_path / "copies.npy", same)
    found = verify_bitmap(tmp_path / "copies.npy", Searcher(Exact(features), holdings), tmp_path)
    assert found.precision == 1
    distances = pq.read_table(tmp_path / "pairs.parquet")["raw_distance"].to_numpy()
    assert distances.max() < 1e-6


def test_hits_of_minus_one_are_no_hits(data, tmp_path):
    folder, bitmap, features, holdings = data
    searcher = Searcher(Exact(features, hidden=True), holdings)
    found = verify_bitmap(folder / "is_dup.npy", searcher, tmp_path)
    assert (found.no_hit, found.confirmed) == (bitmap.sum(), 0) and found.precision == 0
    assert len(pq.read_table(tmp_path / "pairs.parquet")) == 0


def test_missing_shards_are_skipped_and_counted(data, tmp_path):
    folder, bitmap, features, whole = data
    here = [n in (0, 2, 4, 9) for n in range(10)]
    some = Holdings(
        whole.offsets,
        [p if h else None for p, h in zip(whole.metadata, here, strict=True)],
        [p if h else None for p, h in zip(whole.features, here, strict=True)],
        whole.keys,
    )
    found = verify_bitmap(folder / "is_dup.npy", Searcher(Exact(features), some), tmp_path)
    inside = np.repeat(here, faulty.LENGTHS)
    assert found.skipped == bitmap[~inside].sum() > 0
    assert found.judged + found.unverified == bitmap[inside].sum() and found.unverified > 0
    assert found.precision > 0.98
    table = pq.read_table(tmp_path / "pairs.parquet")
    unknown = table.filter(np.isnan(table["raw_distance"].to_numpy(zero_copy_only=False)))
    assert unknown["duplicate"].null_count == len(unknown) == found.unverified


def test_a_bitmap_of_another_data_set_is_refused(data, tmp_path):
    _, bitmap, features, holdings = data
    searcher = Searcher(Exact(features), holdings)
    for values, word in ((bitmap[:-1], "too short"), (np.append(bitmap, True), "too long")):
        np.save(tmp_path / "b.npy", values)
        with pytest.raises(BadInputError, match=word):
            verify_bitmap(tmp_path / "b.npy", searcher, tmp_path)
    np.save(tmp_path / "b.npy", np.zeros(2000, bool))
    with pytest.raises(BadInputError, match="marks no row"):
        verify_bitmap(tmp_path / "b.npy", searcher, tmp_path)
    for far in (float("nan"), -1.0):
        with pytest.raises(BadInputError, match="not a distance"):
            verify_bitmap(tmp_path / "b.npy", searcher, tmp_path, max_distance=far)


def test_the_sample_is_uniform_distinct_and_repeatable(data, monkeypatch):
    folder, bitmap, _, _ = data
    monkeypatch.setattr("snip_assets.engine.verify_bitmap.BLOCK", 97)
    marks = Bitmap(folder / "is_dup.npy")
    rows = sample_marked(marks, 100, 3)
    assert len(set(rows.tolist())) == 100 and bitmap[rows].all()
    assert np.array_equal(rows, sample_marked(marks, 100, 3))
    assert np.array_equal(sample_marked(marks, 10**6, 0), np.flatnonzero(bitmap))


def test_a_spreadsheet_sees_no_formula(tmp_path):
    import pyarrow as pa

    texts = ["=1+1", " @x", "+2", "-3", "\tx", 'plain, "quoted"\nline', None, "é"]
    write_csv(tmp_path / "t.csv", pa.table({"caption": texts, "row": range(8)}))
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file)][1:]
    assert rows == ["'=1+1", "' @x", "'+2", "'-3", "'\tx", texts[5], "", "é"]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 100, 0.7222, 0.8749), (0, 0, 0.0, 1.0)],
)
def test_wilson(successes, trials, low, high):
    found = wilson(successes, trials)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
