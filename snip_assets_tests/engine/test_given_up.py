"""Groups whose pairs are not all stored: no two near rows stay, and nothing else changes."""

from itertools import pairwise

import numpy as np
import pytest

from snip_assets.engine import given_up
from snip_assets.engine.changed import Former
from snip_assets.engine.given_up import GivenUp
from snip_assets.engine.group_table import duplicate_groups
from snip_assets.engine.groups import group
from snip_assets.engine.keep import keep
from snip_assets.engine.pairs import write_pairs
from snip_assets.engine.verify import Pairs, distances, thin

from .test_changed import contents

MOST = 0.1


class Raw:
    def __init__(self, x):
        self.x = x

    def take(self, rows):
        return self.x[rows.astype(np.int64)]


def world(seed, kind):
    """Blobs, some wider than the threshold, in rows of any length."""
    random = np.random.default_rng(seed)
    rows, dim = int(random.integers(50, 600)), int(random.choice([3, 8, 64]))
    centres = random.standard_normal((4, dim))
    x = centres[random.integers(0, 4, rows)]
    x += random.choice([0.1, 0.2, 0.5]) * random.random((rows, 1)) * random.normal(size=x.shape)
    return Raw((x * 10 ** random.uniform(-2, 2, (rows, 1))).astype(kind)), rows


def decided(folder, pairs, rows, rule, measured):
    folder.mkdir()
    path = folder / "pairs.parquet"
    write_pairs(path, pairs)
    group([path], rows, folder / "labels.npy", MOST)
    keep([path], rows, rule, folder, max_distance=MOST, given_up=measured)
    names = ("kept_row", "kept_distance", "labels")
    return [np.load(folder / f"{name}.npy") for name in names]


@pytest.mark.parametrize("rule", ["neighbours", "first"])
def test_no_two_near_rows_stay_and_none_is_an_orphan(tmp_path, monkeypatch, rule):
    # Small ones, so that there are many.
    monkeypatch.setattr(given_up, "BLOCK", 7)
    monkeypatch.setattr(given_up, "ROUND", 3)
    were_near = 0
    for seed in range(12):
        raw, rows = world(seed, [np.float16, np.float32, np.float64][seed % 3])
        row, earlier = np.nonzero(np.tri(rows, k=-1, dtype=bool))
        far = distances(raw, row, earlier)
        near = far <= np.float32(MOST)
        all_pairs = Pairs(row[near].astype(np.uint64), earlier[near].astype(np.uint64), far[near])
        stored = thin(all_pairs, 1 + seed)
        measured = GivenUp(raw, 1 + seed, MOST)
        before = decided(tmp_path / f"{seed}-before", stored, rows, rule, None)
        kept_row, distance, labels = decided(tmp_path / f"{seed}", stored, rows, rule, measured)

        def stay_near(kept, pairs=(row[near], earlier[near])):
            return int(np.count_nonzero(kept[pairs[0]] & kept[pairs[1]]))

        own = np.arange(rows)
        were_near += stay_near(before[0] == own)
        assert stay_near(kept_row == own) == 0
        assert (kept_row[kept_row] == kept_row).all()
        gone = np.flatnonzero(kept_row != own)
        np.testing.assert_array_equal(distance[gone], distances(raw, gone, kept_row[gone]))
        assert (distance <= np.float32(MOST)).all()
        whole = np.bincount(stored.row.astype(np.int64), minlength=rows) <= seed
        others = ~np.isin(labels, labels[~whole])
        np.testing.assert_array_equal(kept_row[others], before[0][others])
        np.testing.assert_array_equal(distance[others], before[1][others])
    assert were_near


def test_pairs_of_a_large_group_that_the_index_lost_do_no_harm(tmp_path):
    raw = Raw(np.random.default_rng(0).normal(size=(1, 32)) + np.zeros((200, 1)))
    raw.x = raw.x + 0.02 * np.random.default_rng(1).normal(size=raw.x.shape)
    row, earlier = np.nonzero(np.tri(200, k=-1, dtype=bool))
    # Most pairs of the first rows, and of all others, are lost; they stay one group.
    held = (np.random.default_rng(2).random(len(row)) < 0.2) | (earlier == row - 1)
    row, earlier = row[held].astype(np.uint64), earlier[held].astype(np.uint64)
    stored = thin(Pairs(row, earlier, distances(raw, row, earlier)), 25)
    before, *_ = decided(tmp_path / "before", stored, 200, "first", None)
    after, *_ = decided(tmp_path / "after", stored, 200, "first", GivenUp(raw, 25, MOST))
    assert len(np.unique(before)) > 3
    assert np.unique(after).tolist() == [0]


@pytest.mark.parametrize("rule", ["neighbours", "first"])
@pytest.mark.parametrize("seed", range(4))
def test_shards_that_arrive_give_the_bytes_of_all_at_once(tmp_path, seed, rule):
    raw, rows = world(seed, np.float32)
    files, former = [], None
    given = {"max_distance": MOST, "rule": rule, "given_up": GivenUp(raw, 4, MOST)}
    for low, high in pairwise([0, rows // 3, rows // 2, rows]):
        row, earlier = np.nonzero(np.tri(high, k=-1, dtype=bool))
        far = distances(raw, row, earlier)
        own = (row >= low) & (far <= np.float32(MOST))
        pairs = Pairs(row[own].astype(np.uint64), earlier[own].astype(np.uint64), far[own])
        files.append(tmp_path / f"{low}.parquet")
        write_pairs(files[-1], thin(pairs, 4))
        step, fresh = tmp_path / f"step-{low}", tmp_path / f"fresh-{low}"
        duplicate_groups(files, high, step, former=former, **given)
        duplicate_groups(files, high, fresh, **given)
        assert contents(step) == contents(fresh)
        former = Former(step, list(files), decided=True)
