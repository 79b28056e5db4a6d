"""What stays open or in memory from one question to the next is never that of another file."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import pair_files
from snip_assets.engine.pairs import write_pairs
from snip_assets.engine.shards import Registry, Shard, Source, raw_features
from snip_assets.engine.verify import Pairs


def some_pairs(rows: list[int]) -> Pairs:
    row = np.array(rows, np.uint64)
    return Pairs(row, np.zeros_like(row), row.astype(np.float32))


def read(*paths: Path) -> list[int]:
    return [int(r) for block in pair_files.stream(paths, 100, "pairs") for r in block.row]


@pytest.mark.parametrize("room", [0, 3, 100])
def test_pairs_are_those_of_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(pair_files, "HELD_PAIRS", room)
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    write_pairs(one, some_pairs([1, 2]))
    write_pairs(other, some_pairs([3, 4]))
    for _ in range(3):
        assert read(one, other) == [1, 2, 3, 4]
    write_pairs(other, some_pairs([5, 6]))
    assert read(one, other) == [1, 2, 5, 6]
    # Of another folder, by the same name.
    (tmp_path / "more").mkdir()
    write_pairs(tmp_path / "more" / "one.parquet", some_pairs([7]))
    assert read(tmp_path / "more" / "one.parquet", one) == [7, 1, 2]


def test_pairs_in_memory_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, some_pairs([1, 2]))
    assert read(path) == [1, 2]
    monkeypatch.setattr(pair_files.pq, "ParquetFile", None)
    assert read(path) == [1, 2]


def test_raw_features_that_were_exchanged_and_put_back_are_the_former_ones(tmp_path: Path) -> None:
    paths, cuts = [tmp_path / f"img_emb_{n}.npy" for n in range(2)], [0, 3, 6]
    for number, path in enumerate(paths):
        np.save(path, np.full((3, 2), number + 1, np.float16))
    shards = [
        Shard(str(n), n, low, high - low, 2, "float16", path, tmp_path / "none.parquet")
        for n, (path, (low, high)) in enumerate(zip(paths, pairwise(cuts), strict=True))
    ]
    registry = Registry(Source(tmp_path, tmp_path), tuple(shards))

    def first() -> float:
        return float(raw_features(registry).take(np.array([0]))[0, 0])

    known = raw_features(registry)
    assert raw_features(registry) is known
    # Not opened yet when it is exchanged, and put back before the next question.
    paths[0].rename(tmp_path / "aside.npy")
    np.save(paths[0], np.full((3, 2), 9, np.float16))
    assert known.take(np.array([0]))[0, 0] == 9
    (tmp_path / "aside.npy").rename(paths[0])
    assert raw_features(registry) is not known
    assert first() == 1
    np.save(paths[0], np.full((3, 2), 5, np.float16))
    assert first() == 5
