"""Texts of the rows that a report shows; those of the last report are not looked up again.

A row of Parquet is read by decoding its whole row group. Most rows of a report were in the last
one: where they are kept, an arrival reads few of the older shards for the others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.metadata import CAPTION_NAMES, URL_NAMES, Metadata
from snip_assets.engine.shards import Registry
from snip_assets.engine.stations.base import source_state
from snip_assets.engine.storage.files import write_parquet

WIDTH_NAMES, HEIGHT_NAMES = ("original_width", "width"), ("original_height", "height")
NAMES = {
    "url": URL_NAMES,
    "caption": CAPTION_NAMES,
    "width": WIDTH_NAMES,
    "height": HEIGHT_NAMES,
}
_PLACE = ("shard", "state", "row_in_shard")
_TEXTS = [(name, pa.large_string()) for name in NAMES]
SCHEMA = pa.schema(
    [("shard", pa.string()), ("state", pa.string()), ("row_in_shard", pa.int64()), *_TEXTS]
)


def look_up(registry: Registry, rows: np.ndarray, kept: Path) -> pa.Table:
    """Url, caption, width and height of rows, null where a shard has no such column.

    Parameters
    ----------
    registry
        The data set.
    rows
        int64[n] row ids, ascending, each once.
    kept
        Parquet file with what was found the last time, of metadata files as they were then;
        written anew with what is found now. Where it cannot be read, it is not believed.

    Returns
    -------
    pyarrow.Table
        `SCHEMA`, n rows.
    """
    places = _places(registry, rows)
    before = _read(kept)
    columns = (before[name].to_pylist() for name in _PLACE)
    known = {place: at for at, place in enumerate(zip(*columns, strict=True))}
    at = np.array([known.get(place, -1) for place in places], np.int64)
    new = at < 0
    if not new.any() and len(before) == len(rows):
        return before.take(pa.array(at))
    fresh = Metadata.of(registry).columns(rows[new], *NAMES.values())
    at[new] = len(before) + np.arange(np.count_nonzero(new))
    texts = [
        pa.concat_arrays([*before[name].chunks, text]).take(pa.array(at))
        for name, text in zip(NAMES, fresh, strict=True)
    ]
    found = pa.table([*([p[n] for p in places] for n in range(len(_PLACE))), *texts], schema=SCHEMA)
    write_parquet(kept, found)
    return found


def _places(registry: Registry, rows: np.ndarray) -> list[tuple[str, str, int]]:
    """Shard, state of its metadata and row in shard, of each row."""
    ordinals = np.searchsorted(registry.offsets, rows, "right") - 1
    shards = {n: registry.shards[n] for n in np.unique(ordinals).tolist()}
    states = {n: source_state(shard.metadata) for n, shard in shards.items()}
    return [
        (shards[n].key, states[n], row - shards[n].start)
        for n, row in zip(ordinals.tolist(), rows.tolist(), strict=True)
    ]


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA).combine_chunks()
    except (OSError, pa.ArrowException):
        return SCHEMA.empty_table()
