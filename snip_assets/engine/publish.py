"""What a run is for: the bitmap, the metadata without duplicates, the drop lists.

Outputs of a shard depend on its own metadata and on its slice of the decision alone (`slices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError
from .metadata import CAPTION_NAMES, MD5_NAMES, URL_NAMES, Metadata, as_text, find_column
from .shards import Shard
from .slices import Slices
from .storage.files import NpyWriter, atomic_path, write_json
from .storage.parquet_filter import Column, filter_parquet
from .storage.parquet_source import parquet_file, parquet_schema, readable

BLOCK_ROWS = 1 << 20
BATCH_ROWS = 1 << 16
DROP_LIST = pa.schema(
    [
        ("row", pa.uint64()),
        ("key", pa.string()),
        ("row_in_shard", pa.int64()),
        ("url", pa.large_string()),
        ("kept_row", pa.uint64()),
        ("kept_url", pa.large_string()),
        ("distance", pa.float32()),
        ("group", pa.uint64()),
        ("md5", pa.large_string()),
        ("kept_md5", pa.large_string()),
    ]
)


def dup_bitmap(groups: Path, out: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """Write `dup_bitmap.npy` (bool[N], True = drop), `dup_bitmap.bits` and `shards.json`.

    The bits are the same packed, 8 rows a byte, lowest bit first (`np.packbits`, little). The last
    tells which rows these are: key and rows of each shard, in order. Memory: a block of rows.

    Parameters
    ----------
    groups
        Folder of `duplicate_groups`.
    out
        Folder, replaced as a whole.
    shards
        Those that are decided about.

    Returns
    -------
    dict
        rows, dropped.
    """
    decided, dropped = Slices(groups), 0
    kept_row = decided.kept_row
    with atomic_path(out) as folder:
        folder.mkdir()
        with (
            NpyWriter(folder / "dup_bitmap.npy", kept_row.shape, np.bool_) as bitmap,
            open(folder / "dup_bitmap.bits", "wb") as bits,
        ):
            for start in range(0, len(kept_row), BLOCK_ROWS):
                drop = ~decided.kept(start, min(len(kept_row), start + BLOCK_ROWS))
                bitmap.append(drop)
                bits.write(np.packbits(drop, bitorder="little").tobytes())
                dropped += int(np.count_nonzero(drop))
        listed = [{"key": shard.key, "rows": shard.rows} for shard in shards]
        write_json(folder / "shards.json", {"shards": listed})
    return {"rows": len(kept_row), "dropped": dropped}


def deduped_metadata(
    shard: Shard,
    decided: Slices,
    out: Path,
    *,
    duplicate_count: bool = False,
    keep_captions: Metadata | None = None,
) -> dict[str, Any]:
    """Write the kept rows of a metadata shard, as `parquet_filter.filter_parquet` does.

    Memory: one row group; with captions, those of all rows that this shard's rows stand for, and
    the caption column of one row group of each shard in turn.

    Parameters
    ----------
    shard
        Which one.
    decided
        The decision; one for all shards.
    out
        File to write.
    duplicate_count
        Add a column of this name (int64): how many dropped rows a row stands for.
    keep_captions
        Metadata of all shards: add a column `duplicate_captions` (list of string) with the
        captions of those rows, by row id.

    Returns
    -------
    dict
        rows, kept, dropped, notes (what was missing, a line each).
    """
    keep = decided.of(shard)
    extra: list[tuple[pa.Field, Column]] = []
    notes = []
    if duplicate_count or keep_captions is not None:
        own = decided.stands_for(shard)
        kept_rows = decided.kept_rows[own].astype(np.int64)
        counts = np.bincount(kept_rows - shard.start, minlength=shard.rows).astype(np.int64)
        if duplicate_count:
            extra.append((pa.field("duplicate_count", pa.int64()), _counts_column(counts)))
        if keep_captions is not None:
            dropped = decided.dropped_rows[own].astype(np.int64)
            captions = _captions(keep_captions, dropped)
            named = find_column(parquet_schema(shard.metadata), CAPTION_NAMES)
            if named is None and captions.null_count == len(captions) > 0:
                notes.append(f"no column {' or '.join(CAPTION_NAMES)}: no captions to keep")
            field = pa.field("duplicate_captions", pa.list_(pa.large_string()))
            extra.append((field, _captions_column(counts, captions)))
    filter_parquet(shard.metadata, out, keep, extra)
    kept = int(np.count_nonzero(keep))
    return {"rows": shard.rows, "kept": kept, "dropped": shard.rows - kept, "notes": notes}


def drop_list(shard: Shard, decided: Slices, out: Path) -> dict[str, Any]:
    """Write the dropped rows of a shard: what explains each, by url, row id and distance.

    Columns: row, key, row_in_shard, url, kept_row, kept_url, distance, group, md5, kept_md5;
    texts are null where the metadata has no such column. Memory: a batch of rows and their texts.

    Parameters
    ----------
    shard, decided, out
        As in `deduped_metadata`.

    Returns
    -------
    dict
        rows, dropped, notes.
    """
    go, dropped = ~decided.of(shard), 0
    with (
        atomic_path(out) as temporary,
        pq.ParquetWriter(
            temporary, DROP_LIST, compression="zstd", use_dictionary=["key"]
        ) as writer,
    ):
        for start, url, md5 in _texts(shard):
            inside = np.flatnonzero(go[start : start + len(url)])
            if len(inside):
                texts = url.take(pa.array(inside)), md5.take(pa.array(inside))
                columns = _dropped(shard, decided, inside + start, *texts)
                writer.write_table(pa.table(columns, schema=DROP_LIST))
            dropped += len(inside)
    missing = find_column(parquet_schema(shard.metadata), URL_NAMES) is None
    notes = [f"{shard.metadata}: no column url; the drop list has none"] if missing else []
    return {"rows": shard.rows, "dropped": dropped, "notes": notes}


def _counts_column(counts: np.ndarray) -> Column:
    return lambda start, mask: pa.array(counts[start : start + len(mask)][mask])


def _captions(metadata: Metadata, rows: np.ndarray) -> pa.Array:
    order = np.argsort(rows, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(rows))
    return metadata.take(rows[order], CAPTION_NAMES).take(pa.array(back))


def _captions_column(counts: np.ndarray, captions: pa.Array) -> Column:
    offsets = np.concatenate([[0], np.cumsum(counts)])

    def column(start: int, mask: np.ndarray) -> pa.Array:
        # Dropped rows stand for none, so the lists of the kept ones lie end to end.
        low, high = offsets[start], offsets[start + len(mask)]
        ends = offsets[start + 1 : start + 1 + len(mask)][mask] - low
        places = np.concatenate([[0], ends]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(places), captions.slice(low, high - low))

    return column


def _texts(shard: Shard) -> Iterator[tuple[int, pa.Array, pa.Array]]:
    """First row in the shard, url and md5 of each batch of its metadata."""
    with parquet_file(shard.metadata) as file:
        if file.metadata.num_rows != shard.rows:
            raise BadInputError(
                f"{shard.metadata}: {file.metadata.num_rows} rows, {shard.rows} were registered; "
                "put the former file back."
            )
        names = [find_column(file.schema_arrow, wanted) for wanted in (URL_NAMES, MD5_NAMES)]
        columns = [name for name in names if name is not None]
        start = 0
        if not columns:
            for first in range(0, shard.rows, BATCH_ROWS):
                none = pa.nulls(min(BATCH_ROWS, shard.rows - first), pa.large_string())
                yield first, none, none
            return
        with readable(shard.metadata):
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                texts = [_text(shard.metadata, batch, name) for name in names]
                yield start, texts[0], texts[1]
                start += len(batch)


def _text(path: Path, batch: pa.RecordBatch, name: str | None) -> pa.Array:
    if name is None:
        return pa.nulls(len(batch), pa.large_string())
    return as_text(path, pa.chunked_array([batch.column(name)])).combine_chunks()


def _dropped(
    shard: Shard,
    decided: Slices,
    inside: np.ndarray,
    url: pa.Array,
    md5: pa.Array,
) -> list[Any]:
    rows = inside + shard.start
    kept_row = decided.kept_row[rows]
    kept_url, kept_md5 = decided.representatives.take(kept_row, "url", "md5")
    return [
        pa.array(rows.astype(np.uint64)),
        pa.array([shard.key] * len(rows), pa.string()),
        pa.array(inside.astype(np.int64)),
        url,
        pa.array(kept_row.astype(np.uint64)),
        kept_url,
        pa.array(decided.kept_distance[rows]),
        pa.array(decided.labels[rows].astype(np.uint64)),
        md5,
        kept_md5,
    ]
