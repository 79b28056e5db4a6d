"""At which row id each shard starts: from a file, or from the shards' Parquet footers.

A footer is the last few kilobytes of a Parquet file, so the rows of a remote shard are known
after one or two range requests, without downloading it.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError
from .progress import track
from .shards import METADATA_PATTERN
from .storage.files import open_npy
from .storage.locations import local_path, shown, web_address
from .storage.parquet_source import parquet_rows
from .storage.remote import NotThereError, Policy, Session
from .storage.remote_files import exists as exists_there
from .storage.transfers import in_store

_TAIL = 1 << 16
_LONGEST_FOOTER = 1 << 28


def load(path: Path) -> np.ndarray:
    """Row offsets from an .npy of cumulative sizes (the authors' `cum_sz`, our `row_offsets`).

    Returns
    -------
    ndarray
        int64[S + 1], leading 0, never falling.

    Raises
    ------
    BadInputError
        It is not of that form, sizes that are not cumulative for example.
    """
    values = np.asarray(open_npy(path)).ravel()
    if values.dtype.kind not in "iuf" or len(values) < 2:
        raise BadInputError(f"{path}: {values.dtype} x {len(values)}; expected cumulative sizes.")
    with np.errstate(invalid="ignore"):  # what NaN becomes is told below
        offsets = values.astype(np.int64)
    if np.any(offsets != values):
        raise BadInputError(f"{path}: holds numbers that are no row counts.")
    if offsets[0] != 0:
        raise BadInputError(
            f"{path}: begins with {offsets[0]}; row offsets begin with 0, where shard 0 starts. "
            "If these are cumulative sizes without the leading 0, put it in front."
        )
    if np.any(np.diff(offsets) < 0):
        raise BadInputError(f"{path}: falls somewhere; expected cumulative sizes, not sizes.")
    return offsets


def keys_beside(path: Path) -> list[str] | None:
    """Shard keys in the order of the offsets, if a list of shards lies beside the file."""
    listed = listed_beside(path)
    return None if listed is None else listed[0]


def listed_beside(path: Path) -> tuple[list[str], np.ndarray] | None:
    """Shard keys in order and row offsets, if a list of shards lies beside the file."""
    try:
        value = json.loads((path.parent / "shards.json").read_text())
        entries = [(entry["key"], int(entry["rows"])) for entry in value["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [key for key, _ in entries], np.cumsum([0, *(rows for _, rows in entries)])


def location_of(template: str, shard: int) -> str:
    """The location of a metadata shard.

    Parameters
    ----------
    template
        With `{shard:04d}` or `{key}` (the number in four digits); a folder or an address that
        names no shard gets `/metadata_{key}.parquet`.

    Raises
    ------
    BadInputError
        The template names something else.
    """
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if not names:
            template = f"{template.rstrip('/')}/{METADATA_PATTERN}"
        if names - {"shard", "key"}:
            raise ValueError("unknown name")
        return template.format(shard=shard, key=f"{shard:04d}")
    except (ValueError, IndexError, KeyError) as error:
        raise BadInputError(
            f"{template}: not a template; write {{shard:04d}} or {{key}} where the number goes."
        ) from error


def rows_of(location: str, session: Session) -> int:
    """Rows of a Parquet file anywhere, from its footer.

    Raises
    ------
    NotThereError
        There is no such file.
    BadInputError
        It is no Parquet file, or its server answers no range requests.
    """
    if path := local_path(location):
        if not path.exists():
            raise NotThereError(f"{path}: no such file.")
        return parquet_rows(path)
    if (there := in_store(location)) is not None:
        if not exists_there(there):
            raise NotThereError(f"{there}: no such file.")
        return parquet_rows(there)
    url = web_address(location)
    tail, total = session.tail(url, _TAIL)
    if tail[-4:] != b"PAR1" or len(tail) < 12:
        raise BadInputError(f"{shown(url)}: not a Parquet file (its end is not that of one).")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > min(total, _LONGEST_FOOTER):
        raise BadInputError(f"{shown(url)}: damaged Parquet file (footer of {length} bytes).")
    if length > len(tail):
        tail, _ = session.tail(url, length)
    try:
        # The reader looks at the end only: magic bytes in front make a whole file of it.
        return pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-length:])).num_rows
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{shown(url)}: damaged Parquet footer ({error}).") from error


def exists(location: str, session: Session) -> bool:
    """Whether there is a Parquet file at a location."""
    try:
        rows_of(location, session)
    except NotThereError:
        return False
    return True


def from_footers(template: str, stop: int | None, policy: Policy | None = None) -> np.ndarray:
    """Row offsets of shards 0 to `stop` (excluded), from their footers.

    Parameters
    ----------
    stop
        None: up to the first shard that is not there.

    Returns
    -------
    ndarray
        int64[shards + 1], leading 0.
    """
    policy = policy or Policy()
    with Session(policy) as session:
        if stop is None:
            sizes = list(_until_missing(template, session, policy))
        else:
            with ThreadPoolExecutor(2 * policy.at_once) as pool:
                places = [location_of(template, shard) for shard in range(stop)]
                answers = pool.map(lambda place: rows_of(place, session), places)
                sizes = list(track(answers, "footers", stop))
    return np.cumsum([0, *sizes], dtype=np.int64)


def _until_missing(template: str, session: Session, policy: Policy) -> Iterator[int]:
    """In blocks: a few requests too many at the end, none of them a download."""
    block = 2 * policy.at_once

    def rows(shard: int) -> int | None:
        try:
            return rows_of(location_of(template, shard), session)
        except NotThereError:
            return None

    with ThreadPoolExecutor(block) as pool:
        for first in count(0, block):
            for size in pool.map(rows, range(first, first + block)):
                if size is None:
                    return
                yield size
