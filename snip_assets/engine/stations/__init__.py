"""The stations: one function an asset. Each skips what is current, else works, writes and seals.

A notebook, the command line and Dagster all call these.
"""

from snip_assets.engine.run import Run

from .duplicates import dup_bitmap, duplicate_groups, duplicate_pairs, undecided, unpaired
from .features import (
    clip_features,
    metadata,
    read_metadata,
    replaced,
    require_named,
    snip_features,
    snip_model,
)
from .index import index_shards, snip_index, trained_index
from .publish import deduped_metadata, drop_list, unpublished, without_metadata
from .unfinished import unfinished

__all__ = [
    "Run",
    "clip_features",
    "deduped_metadata",
    "drop_list",
    "dup_bitmap",
    "duplicate_groups",
    "duplicate_pairs",
    "index_shards",
    "metadata",
    "read_metadata",
    "replaced",
    "require_named",
    "snip_features",
    "snip_index",
    "snip_model",
    "trained_index",
    "undecided",
    "unfinished",
    "unpaired",
    "unpublished",
    "without_metadata",
]
