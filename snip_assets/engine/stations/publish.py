"""Stations of outputs: deduped_metadata, drop_list."""

from __future__ import annotations

from snip_assets.engine.files import Manifest
from snip_assets.engine.publish import deduped_digest, drop_list_digest
from snip_assets.engine.publish import deduped_metadata as publish_metadata
from snip_assets.engine.publish import drop_list as publish_drop_list
from snip_assets.engine.run import Run

from .base import each, source_state


def deduped_metadata(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the kept rows of metadata shards; only those whose decision changed."""
    decided = run.layout.duplicate_groups
    run.version(decided, "duplicate_groups")
    run.version(run.layout.dup_bitmap, "dup_bitmap")
    return each(
        run,
        keys,
        run.layout.deduped_metadata,
        lambda s: {"metadata": source_state(s.metadata), "decision": deduped_digest(decided, s)},
        lambda shard, output: publish_metadata(shard, decided, output),
    )


def drop_list(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the dropped rows of shards; only those whose decision changed."""
    decided = run.layout.duplicate_groups
    run.version(decided, "duplicate_groups")
    run.version(run.layout.dup_bitmap, "dup_bitmap")
    return each(
        run,
        keys,
        run.layout.drop_list,
        lambda s: {"metadata": source_state(s.metadata), "decision": drop_list_digest(decided, s)},
        lambda shard, output: publish_drop_list(shard, decided, output),
    )
