"""The summary at the end: what was found, how good it is, where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.storage.files import open_npy, read_manifest


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
        pairs += pq.ParquetFile(layout.duplicate_pairs(key)).metadata.num_rows
        copies += int(manifest.facts.get("exact_copies", 0))
    dropped = int(np.count_nonzero(open_npy(layout.dup_bitmap / "dup_bitmap.npy")))
    index = read_manifest(layout.snip_index)
    return {
        "rows": registry.rows,
        "shards_not_compared": without,
        "exact_copies": copies,
        "pairs": pairs,
        "groups": pq.ParquetFile(layout.duplicate_groups / "groups.parquet").metadata.num_rows,
        "dropped": dropped,
        "kept": registry.rows - dropped,
        "index_bytes_per_row": index.facts["bytes_per_row"] if index else None,
        "outputs": {
            "report": str(layout.dedup_report / "index.html"),
            "cleaned metadata": str(layout.deduped_metadata("{key}")),
            "dropped rows": str(layout.drop_list("{key}")),
            "bitmap": str(layout.dup_bitmap / "dup_bitmap.npy"),
            "pairs": str(layout.duplicate_pairs("{key}")),
        },
    }
