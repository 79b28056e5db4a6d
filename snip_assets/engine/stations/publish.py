"""Stations of outputs: deduped_metadata, drop_list."""

from __future__ import annotations

from collections.abc import Callable

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.publish import deduped_metadata as publish_metadata
from snip_assets.engine.publish import drop_list as publish_drop_list
from snip_assets.engine.run import Run
from snip_assets.engine.shards import Shard
from snip_assets.engine.slices import Slices
from snip_assets.engine.storage.files import Manifest, current, read_manifest

from .base import Inputs, each, require_same, source_state


def deduped_metadata(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the kept rows of metadata shards; only those whose decision changed."""
    decided = Slices(run.layout.duplicate_groups)
    return each(
        run,
        keys,
        run.layout.deduped_metadata,
        _deduped_inputs(run),
        lambda shard, output: publish_metadata(shard, decided, output),
        alone=False,
    )


def drop_list(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Write the dropped rows of shards; only those whose decision changed."""
    decided = Slices(run.layout.duplicate_groups)
    return each(
        run,
        keys,
        run.layout.drop_list,
        _drop_list_inputs(run),
        lambda shard, output: publish_drop_list(shard, decided, output),
        alone=False,
    )


def unpublished(run: Run, keys: list[str]) -> list[str]:
    """Which shards lack an output, or have one of another decision; those without metadata too."""
    outputs = (
        (run.layout.deduped_metadata, _deduped_inputs(run)),
        (run.layout.drop_list, _drop_list_inputs(run)),
    )

    def published(shard: Shard) -> bool:
        try:
            return all(
                current(output_of(shard.key), inputs(shard)) for output_of, inputs in outputs
            )
        except BadInputError:
            return False

    return [shard.key for shard in run.registry.only(keys) if not published(shard)]


def without_metadata(run: Run, keys: list[str]) -> list[str]:
    """Which shards' metadata cannot be read."""

    def readable(shard: Shard) -> bool:
        try:
            return bool(source_state(shard.metadata))
        except BadInputError:
            return False

    return [shard.key for shard in run.registry.only(keys) if not readable(shard)]


def _deduped_inputs(run: Run) -> Inputs:
    digest = Slices(run.layout.duplicate_groups).deduped_digest
    return _inputs(run, "kept_rows", digest)


def _drop_list_inputs(run: Run) -> Inputs:
    digest = Slices(run.layout.duplicate_groups).drop_list_digest
    return _inputs(run, "dropped_rows", digest)


def _inputs(run: Run, name: str, digest: Callable[[Shard], str]) -> Inputs:
    """What a shard's output is made from; the bitmap of these groups knows the digests."""
    version = run.version("duplicate_groups")
    run.version("dup_bitmap")
    bitmap = read_manifest(run.layout.dup_bitmap)
    known: dict[str, str] = {}
    if bitmap is not None and bitmap.inputs.get("duplicate_groups") == version:
        known = bitmap.facts.get(name, {})

    def inputs(shard: Shard) -> dict[str, str]:
        # They are opened once for all shards.
        require_same(run.layout, "duplicate_groups", version)
        decision = known.get(shard.key) or digest(shard)
        return {"metadata": source_state(shard.metadata), "decision": decision}

    return inputs
