"""Data versions: what Dagster is told that the shards of an asset were made with."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from .engine.run import PAIR_SETTINGS
from .engine.shards import load
from .engine.storage.files import CODE_VERSION, digest_of, read_manifest
from .resources import DataSet


def version_of(output: Path) -> str:
    """The version of an output's contents; empty when it is not made yet."""
    manifest = read_manifest(output)
    return manifest.version if manifest else ""


def made_with(data: DataSet) -> dict[str, tuple[str, ...]]:
    """Asset -> what all its shards are made with, up to their pairs.

    A run gives one data version to all its partitions, so the version does not say what is in
    them: a shard's source never changes, and a shard made alone or in a range gets the same.
    """
    layout = data.layout
    model, trained = version_of(layout.snip_model), version_of(layout.trained_index)
    return {
        "metadata": (),
        "clip_features": (),
        "snip_features": (model,),
        "index_shards": (trained,),
        "duplicate_pairs": (trained, data.run().digest(PAIR_SETTINGS)),
    }


def version(made_with: tuple[str, ...]) -> str:
    """The data version of shards."""
    return digest_of([CODE_VERSION, *made_with])


def unrecorded(instance: dg.DagsterInstance, data: DataSet) -> set[str]:
    """Shards of which Dagster does not know an output as it is: of a killed run, or made without.

    Outputs up to their pairs; `decisions` records the other ones for all shards.
    """
    keys, found = load(data.layout).keys, set()
    for asset, parts in made_with(data).items():
        known = instance.event_log_storage.get_latest_tags_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
        )
        wanted = version(parts)
        found |= {key for key in keys if known.get(key, {}).get(DATA_VERSION_TAG) != wanted}
    return found


def unpublished(instance: dg.DagsterInstance, keys: list[str]) -> set[str]:
    """Shards of which Dagster has no record of an output, whatever lies there."""
    found: set[str] = set()
    for asset in ("deduped_metadata", "drop_list"):
        found |= set(keys).difference(instance.get_materialized_partitions(dg.AssetKey(asset)))
    return found
