"""Runs of neighbouring shards."""

from snip_assets.engine.shards import Registry, Shard
from snip_assets.engine.stretches import reach, stretches
from snip_assets.options import SAMPLE


def test_stretches_are_neighbours() -> None:
    files = SAMPLE.features, SAMPLE.metadata
    shards = (Shard(key, n, 5 * n, 5, 8, "<f2", *files) for n, key in enumerate("abcdef"))
    found = stretches(Registry(SAMPLE, tuple(shards)), list("fabde"))
    assert found == [["a", "b"], ["d", "e", "f"]]


def test_a_reach_is_from_the_first_to_the_last_and_never_empty() -> None:
    assert reach(list("abcdef"), {"b", "e"}) == list("bcde")
    assert reach(list("abc"), set()) == ["c"]
