"""Everything that is known about one row, for `snip show`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from snip_assets.engine import search as engine
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.holdings import Holdings
from snip_assets.engine.layout import Layout
from snip_assets.engine.metadata import read_group, row_groups
from snip_assets.engine.searcher import open_searcher
from snip_assets.engine.shards import Shard, load
from snip_assets.engine.storage.files import open_npy, read_manifest
from snip_assets.engine.storage.parquet_source import parquet_file
from snip_assets.engine.storage.working_copies import here


def find(layout: Layout, name: str) -> int:
    """Row id of a row id written out, or of the first row with a url.

    Raises
    ------
    BadInputError
        There is no such row.
    """
    registry = load(layout)
    if not (name.isascii() and name.isdigit()):
        return engine.find_url(Holdings.of_registry(registry), name)
    if int(name) >= registry.rows:
        raise BadInputError(f"row {name}: row ids go from 0 to {registry.rows - 1}.")
    return int(name)


def about(layout: Layout, row: int, nearest: int = 10) -> dict[str, Any]:
    """Where a row lies, what its metadata says, what was decided about it, and what is near.

    Parts that are not made yet are left out.

    Returns
    -------
    dict
        row, shard, row_in_shard, metadata; kept, why, group, group_size, representative, kept_row,
        distance; earlier_duplicates (earlier_row, distance); nearest (as `search` returns them).
    """
    registry = load(layout)
    shard = registry.shards[int(np.searchsorted(registry.offsets, row, "right") - 1)]
    known: dict[str, Any] = {
        "row": row,
        "shard": shard.key,
        "row_in_shard": row - shard.start,
        "metadata": _metadata(shard, row - shard.start),
    }
    if read_manifest(layout.duplicate_groups) is not None:
        known |= _decision(layout, row)
    if read_manifest(layout.duplicate_pairs(shard.key)) is not None:
        chosen = [("row", "=", row)]
        pairs = pq.read_table(here(layout.duplicate_pairs(shard.key)), filters=chosen).to_pylist()
        known["earlier_duplicates"] = [
            {"earlier_row": p["earlier_row"], "distance": p["distance"]} for p in pairs
        ]
    if nearest and read_manifest(layout.snip_index) is not None:
        searcher = open_searcher(layout.root)
        query = engine.of_rows(searcher, [row])
        hits = engine.search(searcher, query, nearest, "none" if query.encoded else "raw")
        known["nearest"] = hits.drop_columns(["query"]).to_pylist()
    return known


def _metadata(shard: Shard, inside: int) -> dict[str, Any]:
    with parquet_file(shard.metadata) as file:
        names = file.schema_arrow.names
        for number, start, stop in row_groups(file):
            if start <= inside < stop:
                table = read_group(shard.metadata, file, number, names)
                line: dict[str, Any] = table.slice(inside - start, 1).to_pylist()[0]
                return line
    return {}


def _decision(layout: Layout, row: int) -> dict[str, Any]:
    folder = layout.duplicate_groups
    labels = open_npy(folder / "labels.npy")
    if row >= len(labels):
        return {}
    label, kept_row = int(labels[row]), int(open_npy(folder / "kept_row.npy")[row])
    distance = float(open_npy(folder / "kept_distance.npy")[row])
    groups = here(folder / "groups.parquet")
    found = pq.read_table(groups, filters=[("group", "=", label)]).to_pylist()
    group = found[0] if found else {"size": 1, "representative": row, "kept": 1}
    return {
        "kept": kept_row == row,
        "why": _why(row, kept_row, distance, group["size"]),
        "group": label,
        "group_size": group["size"],
        "representative": group["representative"],
        "kept_row": kept_row,
        "distance": distance,
    }


def _why(row: int, kept_row: int, distance: float, size: int) -> str:
    if kept_row != row:
        return f"dropped: at distance {distance:.4g} from row {kept_row}, which stays"
    if size == 1:
        return "kept: it has no duplicate"
    return f"kept: the keep rule chose it in its group of {size:,} rows"
