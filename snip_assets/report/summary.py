"""The summary at the end: what was found, how good it is, where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.remote_outputs import named
from snip_assets.engine.storage.files import open_npy, read_manifest
from snip_assets.engine.storage.parquet_source import parquet_rows


def summary(layout: Layout) -> dict[str, Any]:
    """Totals of an output folder, counted in its files.

    Returns
    -------
    dict
        rows, shards_not_compared, exact_copies, pairs, groups, dropped, kept, index_bytes_per_row,
        outputs.
    """
    registry = shards.load(layout)
    pairs = copies = without = 0
    for key in registry.keys:
        manifest = read_manifest(layout.duplicate_pairs(key))
        if manifest is None:
            # Registered since, or refused: it has no pairs.
            without += 1
            continue
        pairs += parquet_rows(layout.duplicate_pairs(key))
        copies += int(manifest.facts.get("exact_copies", 0))
    dropped = int(np.count_nonzero(open_npy(layout.dup_bitmap / "dup_bitmap.npy")))
    index = read_manifest(layout.snip_index)
    return {
        "rows": registry.rows,
        "shards_not_compared": without,
        "exact_copies": copies,
        "pairs": pairs,
        "groups": parquet_rows(layout.duplicate_groups / "groups.parquet"),
        "dropped": dropped,
        "kept": registry.rows - dropped,
        "index_bytes_per_row": index.facts["bytes_per_row"] if index else None,
        "outputs": {
            "report": named(layout.dedup_report / "index.html"),
            "cleaned metadata": named(layout.deduped_metadata("{key}")),
            "dropped rows": named(layout.drop_list("{key}")),
            "bitmap": named(layout.dup_bitmap / "dup_bitmap.npy"),
            "pairs": named(layout.duplicate_pairs("{key}")),
        },
    }
