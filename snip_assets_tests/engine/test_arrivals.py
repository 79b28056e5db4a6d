"""Looks at a folder in which shards arrive, change, vanish and are malformed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import arrivals, shards, stations
from snip_assets.engine.arrivals import Listing, Memory, look, look_and_admit
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    found = Source(tmp_path / "img_emb", tmp_path / "metadata")
    found.features.mkdir()
    found.metadata.mkdir()
    return found


def put(source: Source, key: str, rows: int = 5, dim: int = 8) -> None:
    random = np.random.default_rng(len(key))
    features = random.normal(size=(rows, dim)).astype(np.float16)
    np.save(source.features / f"img_emb_{key}.npy", features)
    pq.write_table(pa.table({"url": ["u"] * rows}), source.metadata / f"metadata_{key}.parquet")


def listed(**sizes: tuple[int, int]) -> Listing:
    """Features and metadata bytes by key; -1 for a missing file."""
    features = {k: (a, 1) for k, (a, _) in sizes.items() if a >= 0}
    return Listing(features, {k: (b, 1) for k, (_, b) in sizes.items() if b >= 0})


def test_a_shard_is_complete_when_two_looks_see_the_same() -> None:
    first = look(listed(a=(10, 5), b=(10, 5)), {}, Memory())
    assert first.complete == [] and first.growing == ["a", "b"]
    second = look(listed(a=(10, 5), b=(20, 5)), {}, first.memory)
    assert second.complete == ["a"] and second.growing == ["b"]
    assert look(listed(b=(20, 5)), {}, second.memory).complete == ["b"]


@pytest.mark.parametrize("name", ["img_emb/img_emb_a.npy", "metadata/metadata_a.parquet"])
def test_a_file_written_again_in_the_same_size_is_not_steady(source: Source, name: str) -> None:
    put(source, "a")
    first = look(arrivals.listing(source), {}, Memory())
    os.utime(source.features.parent / name, ns=(7, 7))
    second = look(arrivals.listing(source), {}, first.memory)
    assert second.complete == [] and second.growing == ["a"]
    assert look(arrivals.listing(source), {}, second.memory).complete == ["a"]


def test_a_marker_completes_at_the_first_look_and_nothing_else_does() -> None:
    one = listed(a=(10, 5), b=(10, 5))
    marked = Listing(one.features, one.metadata, frozenset({"a_stats.json"}))
    for _ in range(3):
        seen = look(marked, {}, Memory(), "{key}_stats.json")
        assert seen.complete == ["a"] and seen.growing == ["b"]
    whole = Listing(one.features, one.metadata, frozenset({"_SUCCESS"}))
    assert look(whole, {}, Memory(), "_SUCCESS").complete == ["a", "b"]


def test_a_file_alone_or_empty_is_reported_after_some_patience() -> None:
    memory, growing = Memory(), []
    for _ in range(arrivals.PATIENCE + 1):
        seen = look(listed(a=(10, -1), b=(0, 5)), {}, memory)
        memory = Memory.parse(seen.memory.to_json())
        growing.append(seen.growing)
        assert seen.complete == []
    # Others wait for it no longer than for the second look.
    assert growing == [["a", "b"]] + [[]] * arrivals.PATIENCE
    assert "metadata_a.parquet is missing" in seen.problems["a"]
    assert "img_emb_b.npy is empty" in seen.problems["b"]


def test_registered_shards_that_change_or_vanish_are_reported_and_not_taken_again() -> None:
    known = {"a": (10, 1, 5, 1), "b": (10, 1, 5, 1), "c": None, "d": (10, 1, 5, 1)}
    seen = look(listed(a=(10, 5), b=(11, 5), c=(9, 9)), known, Memory())
    assert seen.complete == seen.growing == []
    assert set(seen.problems) == {"b", "d"}
    assert "img_emb_b.npy: changed" in seen.problems["b"]
    assert "img_emb_d.npy and metadata_d.parquet: disappeared" in seen.problems["d"]


def test_a_registered_shard_under_another_name_is_no_new_one() -> None:
    known = {"a": (10, 1, 5, 1), "b": (20, 1, 5, 1)}
    memory = Memory()
    for _ in range(3):
        seen = look(listed(ax=(10, 5), b=(20, 5)), known, memory)
        memory = seen.memory
        assert not seen.complete and not seen.growing
    assert "those of the registered shard a, renamed" in seen.problems["ax"]
    # A copy of one that is still there is another shard.
    copied = listed(a=(10, 5), ax=(10, 5), b=(20, 5))
    assert look(copied, known, look(copied, known, memory).memory).complete == ["ax"]


def test_temporaries_are_ignored_and_odd_keys_reported(source: Source) -> None:
    put(source, "a")
    odd = ("img_emb_.npy", "img_emb_.tmp-1.npy", "img_emb_b.npy.part", "img_emb_c.part.npy", "x")
    for name in odd:
        (source.features / name).write_bytes(b"1")
    (source.features / "img_emb_a b.npy").write_bytes(b"1")
    seen = look(arrivals.listing(source), {}, Memory())
    assert seen.growing == ["a"]
    assert list(seen.problems) == ["a b"] and "not a plain name" in seen.problems["a b"]


def test_a_failed_read_is_not_an_empty_listing(source: Source, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    put(source, "a")
    shards.register(layout, source)
    for file in source.features.iterdir():
        file.unlink()
    with pytest.raises(BadInputError, match="mounted"):
        look_and_admit(layout, source, Memory())
    source.features.rmdir()
    with pytest.raises(BadInputError, match="cannot be listed"):
        look_and_admit(layout, source, Memory())


def test_malformed_shards_are_refused_alone_and_once(source: Source, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    put(source, "0", dim=4)
    for key in "123":
        put(source, key)
    (source.features / "img_emb_2.npy").write_bytes(b"<html>")
    new, first = look_and_admit(layout, source, Memory())
    assert new == [] and first.growing == ["0", "1", "2", "3"]
    new, second = look_and_admit(layout, source, first.memory)
    assert [s.key for s in new] == ["1", "3"]
    assert "4 numbers a row" in second.problems["0"] and "HTML" in second.problems["2"]
    new, third = look_and_admit(layout, source, Memory.parse(second.memory.to_json()))
    assert new == [] and third.problems == second.problems and third.growing == []
    put(source, "2")
    os.utime(source.features / "img_emb_2.npy", ns=(7, 7))
    _, fourth = look_and_admit(layout, source, third.memory)
    new, _ = look_and_admit(layout, source, fourth.memory)
    assert [s.key for s in new] == ["2"]


def test_batches_leave_the_rest_for_the_next_look(source: Source, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    for key in "abcde":
        put(source, key)
    memory, taken = Memory(), []
    for _ in range(4):
        new, seen = look_and_admit(layout, source, memory, most=2)
        memory, taken = Memory.parse(seen.memory.to_json()), [*taken, [s.key for s in new]]
    assert taken == [[], ["a", "b"], ["c", "d"], ["e"]]


def test_what_was_read_is_known_and_an_unread_shard_may_be_replaced(
    source: Source, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "out")
    put(source, "a")
    put(source, "b")
    shards.register(layout, source)
    run = stations.Run(layout, Settings())
    stations.metadata(run, ["a"])
    stations.clip_features(run, ["a"])
    known = arrivals.registered(layout)
    assert known["a"] == arrivals.listing(source).state("a") and known["b"] is None
    for key in "ab":
        os.utime(source.metadata / f"metadata_{key}.parquet", ns=(7, 7))
    assert set(look(arrivals.listing(source), known, Memory()).problems) == {"a"}
