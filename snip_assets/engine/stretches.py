"""Shards that one run is about: neighbours in the order of registration."""

from __future__ import annotations

from collections.abc import Collection

from .shards import Registry


def stretches(registry: Registry, keys: list[str]) -> list[list[str]]:
    """Split shards into runs of neighbours in the order of registration."""
    found: list[list[str]] = []
    last = -2
    for shard in registry.only(keys):
        if shard.ordinal != last + 1:
            found.append([])
        found[-1].append(shard.key)
        last = shard.ordinal
    return found


def reach(keys: list[str], some: Collection[str]) -> list[str]:
    """The keys from the first to the last of some of them; the last key where there are none.

    So that a run has a shard to be about, also when it has something to do for none.
    """
    places = [place for place, key in enumerate(keys) if key in some]
    return keys[places[0] : places[-1] + 1] if places else keys[-1:]
