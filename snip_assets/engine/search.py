"""`snip search`: the nearest rows of a row id, a url, a file of features, a text or an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .copies import LONGEST, SHORTEST
from .errors import BadInputError
from .holdings import Holdings
from .metadata import CAPTION_NAMES, URL_NAMES, as_text, find_column, read_group, row_groups
from .progress import track
from .searcher import Rerank, Searcher
from .storage.files import open_npy, write_json, write_parquet
from .storage.parquet_source import parquet_file
from .storage.remote_files import is_remote

MOST_QUERIES = 10_000
# Rows that are sorted again for each hit, at the least: codes know the order only roughly.
SORTED_A_HIT = 4


@dataclass(frozen=True)
class Queries:
    """What is searched for.

    Attributes
    ----------
    features
        float[n, D].
    names
        How each is called in the results.
    own
        int64[n]: row id of the query itself, which is no hit; -1 where it is no row.
    encoded
        Whether the features are SNIP features, as the index holds them.
    """

    features: np.ndarray
    names: list[str]
    own: np.ndarray
    encoded: bool = False


def finest(searcher: Searcher, queries: Queries) -> Rerank:
    """The finest features by which all hits can be compared with these queries."""
    paths = searcher.holdings.features
    if queries.encoded or not paths or any(path is None or is_remote(path) for path in paths):
        return "none"
    width = open_npy(next(path for path in paths if path is not None)).shape[1]
    return "raw" if width == queries.features.shape[1] else "none"


def of_rows(searcher: Searcher, rows: list[int]) -> Queries:
    """Rows of the data set, by their raw features, else by their SNIP features.

    Raises
    ------
    BadInputError
        A row id is none, or its features are not at hand or have no direction.
    """
    holdings = searcher.holdings
    if outside := [row for row in rows if not 0 <= row < holdings.rows]:
        raise BadInputError(f"row {outside[0]}: row ids go from 0 to {holdings.rows - 1}.")
    wanted = np.array(rows, np.int64)
    have, found = holdings.raw(wanted)
    if not have.all():
        if searcher.snip is None:
            shard = holdings.keys[int(holdings.locate(wanted[~have])[0][0])]
            raise BadInputError(
                f"row {wanted[~have][0]}: the features of shard {shard} are not at hand; give them "
                "with --features."
            )
        found = searcher.snip.take(wanted)
    elif len(bad := np.flatnonzero(~_has_direction(found))):
        raise BadInputError(
            f"row {wanted[bad[0]]}: its features {_NO_DIRECTION}; compute them again."
        )
    return Queries(found, [f"row {row}" for row in rows], wanted, not have.all())


def of_url(searcher: Searcher, url: str) -> Queries:
    """The first row with this url; reads the url column of shard after shard until it is found.

    Raises
    ------
    BadInputError
        No row has it.
    """
    return replace(of_rows(searcher, [find_url(searcher.holdings, url)]), names=[url])


def find_url(holdings: Holdings, url: str) -> int:
    """Row id of the first row with this url."""
    shards = list(enumerate(holdings.metadata))
    for ordinal, path in track(shards, "look for the url", len(shards)):
        if path is None:
            continue
        with parquet_file(path) as file:
            column = find_column(file.schema_arrow, URL_NAMES)
            for number, start, _ in row_groups(file) if column else ():
                values = as_text(path, read_group(path, file, number, [str(column)]).column(0))
                place = pc.index(values, pa.scalar(url, pa.large_string())).as_py()
                if place >= 0:
                    return int(holdings.offsets[ordinal]) + start + place
    raise BadInputError("no row of the metadata at hand has the url that was given.")


def of_npy(path: Path) -> Queries:
    """Features in an .npy file: one row or several."""
    found = open_npy(path)
    if found.ndim == 1:
        found = found[None]
    if found.ndim != 2 or found.dtype.kind != "f" or not 0 < len(found) <= MOST_QUERIES:
        raise BadInputError(
            f"{path}: {found.dtype} {found.shape}; expected 1 to {MOST_QUERIES} rows of features."
        )
    if len(bad := np.flatnonzero(~_has_direction(found))):
        raise BadInputError(f"{path}: row {bad[0]}: its features {_NO_DIRECTION}; leave it out.")
    names = [f"{path.name}[{i}]" for i in range(len(found))]
    return Queries(np.asarray(found), names, np.full(len(found), -1))


_NO_DIRECTION = (
    f"hold NaN or infinity, only zeros, or have a length beyond {SHORTEST:g} to {LONGEST:g}"
)


def _has_direction(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    return (lengths >= SHORTEST) & (lengths <= LONGEST)


def search(
    searcher: Searcher,
    queries: Queries,
    k: int = 10,
    rerank: Rerank = "none",
    depth: int = 100,
) -> pa.Table:
    """The k nearest rows of each query, apart from the query itself.

    Parameters
    ----------
    depth
        Hits that are sorted again by the features of `rerank`; four times k at the least.

    Returns
    -------
    pyarrow.Table
        query, rank (from 1), row, shard, row_in_shard, distance (squared L2; null where a hit's
        features are not at hand for re-ranking), url, caption.
    """
    most = max(depth, SORTED_A_HIT * k)
    distances, ids = searcher.search(queries.features, k + 1, rerank, most, queries.encoded)
    rows: dict[str, list[Any]] = {"query": [], "rank": [], "row": [], "distance": []}
    for name, own, near, hits in zip(queries.names, queries.own, distances, ids, strict=True):
        kept = np.flatnonzero((hits >= 0) & (hits != own))[:k]
        rows["query"] += [name] * len(kept)
        rows["rank"] += range(1, len(kept) + 1)
        rows["row"] += hits[kept].tolist()
        rows["distance"] += [None if np.isnan(d) else float(d) for d in near[kept]]
    return _described(searcher.holdings, rows)


def _described(holdings: Holdings, rows: dict[str, list[Any]]) -> pa.Table:
    found = np.array(rows["row"], np.int64)
    ordinals, inside = holdings.locate(found)
    return pa.table(
        {
            "query": pa.array(rows["query"], pa.large_string()),
            "rank": pa.array(rows["rank"], pa.int32()),
            "row": pa.array(found, pa.int64()),
            "shard": pa.array([holdings.keys[o] for o in ordinals], pa.large_string()),
            "row_in_shard": pa.array(inside, pa.int64()),
            "distance": pa.array(rows["distance"], pa.float32()),
            "url": pa.array(holdings.text(found, URL_NAMES), pa.large_string()),
            "caption": pa.array(holdings.text(found, CAPTION_NAMES), pa.large_string()),
        }
    )


def check_name(path: Path) -> None:
    """Raise BadInputError unless `write` knows the ending of a name."""
    if path.suffix not in (".parquet", ".json"):
        raise BadInputError(f"{path}: name it .parquet or .json.")


def write(table: pa.Table, path: Path) -> None:
    """Write results as JSON or Parquet, by the ending of the name."""
    check_name(path)
    if path.suffix == ".parquet":
        write_parquet(path, table)
    else:
        write_json(path, table.to_pylist())
