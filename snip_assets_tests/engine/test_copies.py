"""Exact copies and the check of rows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import copies, pairs, verify
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.features import Features


def write_shards(folder: Path, x: np.ndarray, cuts: list[int]) -> tuple[list[Path], list[Path]]:
    sources, hashes = [], []
    for number, (low, high) in enumerate(pairwise(cuts)):
        sources.append(folder / f"{number}.npy")
        hashes.append(folder / f"{number}.hashes.npy")
        np.save(sources[-1], x[low:high])
        copies.hash_shard(sources[-1], hashes[-1])
    return sources, hashes


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 4000])
def test_later_copies_point_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int
) -> None:
    monkeypatch.setattr(copies, "BUCKET_BYTES", bucket_bytes)
    random = np.random.default_rng(0)
    kinds = random.normal(size=(120, 16)).astype(np.float16)
    which = random.integers(0, 120, 300)
    cuts = [0, 100, 100, 101, 300]
    sources, hashes = write_shards(tmp_path, kinds[which], cuts)
    expected = {i: int(np.flatnonzero(which == which[i])[0]) for i in range(300)}
    expected = {i: j for i, j in expected.items() if i != j}
    later, first = found(hashes, cuts)
    assert dict(zip(later.tolist(), first.tolist(), strict=True)) == expected
    whole = np.concatenate([np.load(path) for path in hashes])
    firsts = copies.first_of(hashes, np.array(cuts[:-1]), whole[::-1])
    assert firsts.tolist() == [expected.get(i, i) for i in reversed(range(300))]
    assert copies.confirmed(Features(sources, np.array(cuts)), later, first).all()
    for some in ([3], [0], [1], [1, 2], [0, 3], []):
        rows = {row for number in some for row in range(cuts[number], cuts[number + 1])}
        fresh = np.isin(np.arange(4), some)
        own = dict(zip(*(a.tolist() for a in found(hashes, cuts, fresh)), strict=True))
        assert own == {i: j for i, j in expected.items() if i in rows}


@pytest.mark.parametrize("buckets", [1, 2, 3, 7])
def test_hashes_at_the_ends_of_buckets_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: int
) -> None:
    edges = [(number << 64) // buckets for number in range(buckets + 1)]
    ends = [*edges[:-1], *(edge - 1 for edge in edges[1:])]
    cuts = [0, len(ends), 2 * len(ends)]
    monkeypatch.setattr(copies, "BUCKET_BYTES", -(-cuts[-1] * 40 // buckets))
    hashes = [tmp_path / "0.npy", tmp_path / "1.npy"]
    np.save(hashes[0], np.array(ends, np.uint64))
    np.save(hashes[1], np.array(ends[::-1], np.uint64))
    assert len(list(copies.copies(hashes, np.array(cuts[:-1])))) == buckets
    later, first = found(hashes, cuts)
    expected = {cuts[-1] - 1 - row: row for row in range(len(ends))}
    assert dict(zip(later.tolist(), first.tolist(), strict=True)) == expected
    assert len(later) == len(ends)


def found(
    hashes: list[Path], cuts: list[int], fresh: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    parts = zip(*copies.copies(hashes, np.array(cuts[:-1]), fresh), strict=True)
    later, first = (np.concatenate(part) for part in parts)
    return later, first


def test_pairs_tell_copies_from_rows_that_differ_in_length_alone(tmp_path: Path) -> None:
    x = np.array([[1, 2], [2, 4], [1, 2], [2, 4], [3, 1]], np.float32)
    _, hashes = write_shards(tmp_path, x, [0, 2, 5])
    ends = np.array([[1, 0], [2, 0], [3, 1], [3, 2], [4, 0]], np.uint64)
    pairs.write_pairs(
        tmp_path / "pairs.parquet",
        verify.Pairs(ends[:, 0], ends[:, 1], np.array([0, 0, 0, 0, 0.05], np.float32)),
    )
    told = copies.of_pairs([tmp_path / "pairs.parquet"], 5, Features(hashes, np.array([0, 2, 5])))
    assert np.concatenate(list(told)).tolist() == [2, 3]


def test_equal_hashes_of_unequal_rows_are_no_copies(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.save(tmp_path / "x.npy", x)
    features = Features([tmp_path / "x.npy"], np.array([0, 2]))
    assert copies.confirmed(features, np.array([1]), np.array([0])).tolist() == [False]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "all zeros")]
)
def test_a_bad_row_is_named(tmp_path: Path, dtype: type, value: float, what: str) -> None:
    x = np.ones((copies.BLOCK + 50, 4), dtype)
    x[copies.BLOCK + 7] = value
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(BadInputError, match=f"x.npy: row {copies.BLOCK + 7} is {what}"):
        copies.hash_shard(tmp_path / "x.npy", tmp_path / "hashes.npy")
    assert not (tmp_path / "hashes.npy").exists()
