"""Does a bitmap mark duplicates? Sample rows that it marks, and look for what they duplicate.

A marked row is confirmed when another row lies within `max_distance` of it in the raw features.
It is judged only where the features of its nearest hit are at hand: else rows whose partner is in
a missing shard would count against the bitmap. The row itself is never its own duplicate, also
when the index returns it anywhere in the list; a hit of -1 is no hit; rows of shards that are not
at hand are skipped and counted.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from . import apart
from .audit import wilson
from .bitmap import Bitmap, BitOrder
from .errors import BadInputError
from .holdings import Holdings
from .metadata import CAPTION_NAMES, URL_NAMES
from .searcher import Searcher
from .storage.files import atomic_path, write_parquet

BLOCK = 1 << 24
ROWS = 256
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass
class Verified:
    """What came out.

    Attributes
    ----------
    indexed
        Rows that the index has: duplicates are looked for among these.
    sampled
        Marked rows drawn.
    skipped
        Of these, rows whose own features are not at hand (missing shards).
    unverified
        Rows whose nearest hit's features are not at hand, so that nothing decides.
    no_hit
        Rows for which the index returned nothing but themselves: judged not confirmed.
    judged, confirmed
        Rows decided by raw distance, and those with a duplicate within `max_distance`.
    precision, low, high
        confirmed / judged with its 95% Wilson interval.
    """

    indexed: int = 0
    sampled: int = 0
    skipped: int = 0
    unverified: int = 0
    no_hit: int = 0
    judged: int = 0
    confirmed: int = 0
    precision: float = float("nan")
    low: float = 0.0
    high: float = 1.0
    csv: str = ""
    parquet: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON and tables."""
        return asdict(self)


def verify_bitmap(
    bitmap: Path,
    searcher: Searcher,
    out: Path,
    *,
    sample: int = 1000,
    k: int = 16,
    max_distance: float = 0.1,
    seed: int = 0,
    bit_order: BitOrder = "little",
) -> Verified:
    """Estimate the precision of a bitmap; write the pairs to `pairs.csv` and `pairs.parquet`.

    Parameters
    ----------
    k
        Hits looked at besides the row itself; the nearest by raw distance counts.
    bit_order
        Of a bitmap of packed bits.

    Raises
    ------
    BadInputError
        The bitmap does not fit the data set, or marks nothing; or `max_distance` is no distance.
    """
    if not 0 <= max_distance < float("inf"):
        raise BadInputError(f"max_distance {max_distance}: not a distance; 0 or more.")
    holdings = searcher.holdings
    apart.from_outputs(out)
    if out.resolve() in {path.parent.resolve() for path in holdings.files()}:
        raise BadInputError(f"{out}: holds the data set; choose another folder for the pairs.")
    marks = Bitmap(bitmap, holdings.rows, bit_order)
    marks.require(holdings.rows, "the data set")
    rows = sample_marked(marks, sample, seed)
    found = Verified(indexed=searcher.index.rows, sampled=len(rows))
    have, raw = holdings.raw(rows)
    found.skipped = int(np.count_nonzero(~have))
    rows = rows[have]
    pairs = _nearest(searcher, rows, raw, k, found)
    near = pairs["raw_distance"] <= max_distance
    found.confirmed = int(np.count_nonzero(near))
    found.judged = found.no_hit + int(np.count_nonzero(~np.isnan(pairs["raw_distance"])))
    if found.judged:
        interval = wilson(found.confirmed, found.judged)
        found.precision = found.confirmed / found.judged
        found.low, found.high = interval.low, interval.high
    table = _table(holdings, pairs, near)
    found.parquet, found.csv = str(out / "pairs.parquet"), str(out / "pairs.csv")
    write_parquet(out / "pairs.parquet", table)
    write_csv(out / "pairs.csv", table)
    return found


def sample_marked(marks: Bitmap, count: int, seed: int) -> np.ndarray:
    """Row ids, ascending, of `count` marked rows drawn without replacement (all if fewer).

    Reads the bitmap twice, 16 MiB at a time; memory does not grow with the marks.
    """
    starts = range(0, len(marks), BLOCK)
    totals = [int(marks.slice(s, min(s + BLOCK, len(marks))).sum()) for s in starts]
    total = sum(totals)
    if not total:
        raise BadInputError(f"{marks.path}: marks no row; there is nothing to verify.")
    drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    drawn.sort()
    cuts = np.searchsorted(drawn, np.cumsum([0, *totals]))
    rows, before = [], 0
    for start, low, high, inside in zip(starts, cuts[:-1], cuts[1:], totals, strict=True):
        if low < high:
            places = np.flatnonzero(marks.slice(start, min(start + BLOCK, len(marks))))
            rows.append(start + places[drawn[low:high] - before])
        before += inside
    return np.concatenate(rows).astype(np.int64)


def _nearest(
    searcher: Searcher, rows: np.ndarray, raw: np.ndarray, k: int, found: Verified
) -> dict[str, np.ndarray]:
    """For each row its nearest other row, by raw distance where that can be judged."""
    columns: list[list[Any]] = [[], [], [], []]
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        distances, ids = searcher.search(raw[part], k + 1)
        exact = _raw_distances(searcher.holdings, raw[part], ids)
        for row, near, hits, far in zip(rows[part], distances, ids, exact, strict=True):
            real = np.flatnonzero((hits >= 0) & (hits != row))[:k]
            if not len(real):
                found.no_hit += 1
                continue
            judged = not np.isnan(far[real[0]])
            found.unverified += not judged
            choice = real[np.nanargmin(far[real])] if judged else real[0]
            values = (row, hits[choice], near[choice], far[choice] if judged else np.nan)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    return {
        "row": np.array(columns[0], np.int64),
        "other_row": np.array(columns[1], np.int64),
        "index_distance": np.array(columns[2], np.float32),
        "raw_distance": np.array(columns[3], np.float32),
    }


def _raw_distances(holdings: Holdings, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """float64[n, k]: squared raw distance of each hit; NaN where its features are not at hand."""
    wanted, place = np.unique(ids, return_inverse=True)
    have, vectors = holdings.raw(wanted)
    out = np.full(ids.shape, np.nan)
    if not have.any():
        return out
    at = np.cumsum(have) - 1
    place = place.reshape(ids.shape)
    for i, query in enumerate(queries):
        here = have[place[i]]
        hits = vectors[at[place[i][here]]].astype(np.float64)
        out[i, here] = ((hits - query) ** 2).sum(1)
    return out


def _table(holdings: Holdings, pairs: dict[str, np.ndarray], near: np.ndarray) -> pa.Table:
    row, other = pairs["row"], pairs["other_row"]
    unknown = np.isnan(pairs["raw_distance"])

    def text(rows: np.ndarray, names: tuple[str, ...]) -> pa.Array:
        return pa.array(holdings.text(rows, names), pa.large_string())

    return pa.table(
        {
            "row": row,
            "other_row": other,
            "raw_distance": pa.array(pairs["raw_distance"], mask=unknown),
            "index_distance": pairs["index_distance"],
            "duplicate": pa.array(near, mask=unknown),
            "url": text(row, URL_NAMES),
            "other_url": text(other, URL_NAMES),
            "caption": text(row, CAPTION_NAMES),
            "other_caption": text(other, CAPTION_NAMES),
        }
    )


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table for a spreadsheet: texts that one would take for a formula get a quote."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for batch in table.to_batches(1 << 14):
            columns = [column.to_pylist() for column in batch.columns]
            rows = zip(*columns, strict=True)
            writer.writerows([spreadsheet_cell(value) for value in row] for row in rows)


def spreadsheet_cell(value: Any) -> Any:
    """The value; a text that a spreadsheet would take for a formula gets a quote in front."""
    if isinstance(value, str):
        value = value.replace("\0", "")
        # Spreadsheets skip leading blanks before they look for a formula.
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return value
