"""Data versions: what Dagster is told that the shards of an asset were made with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG,
    get_input_data_version_tag,
)

from .engine.run import PAIR_SETTINGS
from .engine.shards import load
from .engine.storage.files import CODE_VERSION, Manifest, digest_of, read_manifest
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


def unrecorded_slices(
    instance: dg.DagsterInstance, asset: dg.AssetKey, bitmap: Manifest, own: Collection[str]
) -> dict[str, str]:
    """Shards whose slice of a bitmap must be recorded for an asset, with its version.

    All of them, unless those that are not of this run have a record of this very bitmap.

    Parameters
    ----------
    own
        Shards of the run.
    """
    slices: dict[str, str] = bitmap.facts[asset.to_user_string()]
    others = [key for key in slices if key not in own]
    made_from = get_input_data_version_tag(dg.AssetKey("dup_bitmap"))
    # Records are written in this order: if the last is there, all are.
    if others and _tags(instance, asset, others[-1]).get(made_from) == bitmap.version:
        return {key: slices[key] for key in slices if key in own}
    return slices


def slice_records(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    slices: Mapping[str, str],
    like: str,
    shown: Mapping[str, Mapping[str, int]],
) -> list[dg.AssetMaterialization]:
    """Records of shards with the versions of their slices.

    Parameters
    ----------
    slices
        Key -> version.
    like
        Shard whose last record has the other tags.
    shown
        Key -> metadata, if there is any.
    """
    tags = _tags(instance, asset, like)
    return [
        dg.AssetMaterialization(
            asset,
            partition=key,
            tags={**tags, DATA_VERSION_TAG: version},
            metadata=shown.get(key),
        )
        for key, version in slices.items()
    ]


def _tags(instance: dg.DagsterInstance, asset: dg.AssetKey, key: str) -> dict[str, str]:
    """What the last record of a shard is tagged with."""
    record = instance.get_latest_data_version_record(asset, is_source=False, partition_key=key)
    return dict(record.event_log_entry.tags or {}) if record else {}
