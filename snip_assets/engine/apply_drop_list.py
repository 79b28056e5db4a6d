"""Apply drop lists to another copy of the metadata, with other files and another row order.

The join runs in DuckDB with bounded memory, spilling to disk; the files are then filtered one
after the other and keep their order, schema and form.

A row of the copy matches a drop-list row by its url, its md5, both, or its place (shard key in the
file name and row in the shard). Urls and md5 sums need care, because the same one may belong to a
dropped row and to the kept row that explains it (copies of one url, equal files): if a value is
also that of a representative, as many of its rows go as the drop lists name, the last in the
order of files and rows, and at least the first one stays. Otherwise all rows with the value go: a
kept row too that explains none, and so is in no drop list. How many go beyond those that the lists
name is counted; url and md5 together tell rows apart whose url gave several pictures.

A row whose kept row the copy lacks stays, matched by url or md5, unless every one is to go:
nothing else there may resemble it. (Where the kept row has no such value, that cannot be told, and
the row goes.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from . import apart, progress
from .errors import BadInputError
from .layout import local
from .metadata import MD5_NAMES, URL_NAMES, describe, find_column
from .settings import Settings
from .shards import METADATA_PATTERN
from .storage.locks import lock, scratch
from .storage.parquet_filter import filter_parquet, require_apart
from .storage.parquet_source import parquet_file

On = Literal["url", "md5", "url+md5", "key"]
BATCH_ROWS = 1 << 17
# A larger limit is none, and DuckDB takes no number beyond.
MOST_GIB = 1 << 20
_KEY = re.compile(METADATA_PATTERN.replace(".", r"\.").replace("{key}", "(.+)"))


def apply_drop_list(
    drop_lists: Path,
    metadata: Path,
    out: Path,
    *,
    on: On = "url",
    every: bool = False,
    memory_gb: float = 4.0,
) -> dict[str, Any]:
    """Write each parquet file of the folder `metadata` into `out` without the dropped rows.

    Memory: `memory_gb` for the join, then a bool a row of one file and one of its row groups.

    Parameters
    ----------
    drop_lists
        Folder of drop lists (or one file).
    metadata
        Folder of parquet files.
    out
        Another folder; files keep their names.
    on
        What rows are matched by.
    every
        Drop rows too whose kept row the copy lacks.
    memory_gb
        Limit of the join, in GiB.

    Returns
    -------
    dict
        files: a dict for each file with file, rows, matched (its rows whose value is in a drop
        list), dropped, kept; and rows, matched, dropped, kept, listed (rows of the drop lists),
        nameless (those of them that have no value to match by), found (those whose value occurs in
        the copy), alone (those of them that stay, as the copy lacks the row that was kept in their
        place), beyond (rows that go beyond those listed, as they have the value of one), on.

    Raises
    ------
    BadInputError
        A folder is empty, a file cannot be read or lacks the column, `out` is `metadata` or has a
        '?', or the memory is too little.
    """
    if "?" in str(out.resolve()):
        raise BadInputError(f"{out}: DuckDB opens no file below a '?'; choose another folder.")
    lists, files = _parquet_files(drop_lists), _parquet_files(metadata)
    require_apart(files, out)
    apart.from_outputs(out)
    if out.resolve() in {path.parent.resolve() for path in lists}:
        raise BadInputError(f"{out}: holds the drop lists; choose another folder.")
    for path in lists:
        _require_columns(path, on)
    selects = [_select(number, path, on) for number, path in enumerate(files)]
    with (
        lock(out / "join.duckdb"),
        scratch(out / "join.duckdb") as spill,
        duckdb.connect(str(spill / "join.duckdb")) as connection,
    ):
        _set_limits(connection, spill, memory_gb)
        _execute(connection, _LISTS[on], drop_lists, [[_literal(path) for path in lists]])
        _execute(connection, _LOOKED_FOR, drop_lists)
        connection.execute("CREATE TABLE present (file INTEGER, place BIGINT, value VARCHAR)")
        for path, select in zip(files, progress.track(selects, "Match", len(selects)), strict=True):
            _execute(connection, f"INSERT INTO present {select}", path)
        _execute(connection, _listed(every), drop_lists)
        joined = partial(_execute, connection, path=metadata)
        counts = dict(joined(_MATCHED).fetchall())
        ((listed, nameless, found, alone),) = joined(_COUNTED).fetchall()
        ((beyond,),) = joined(_BEYOND).fetchall()
        dropped = _Places(joined(_DROPPED))
        table = [
            _filter(number, path, out, dropped, counts.get(number, 0))
            for number, path in progress.track(list(enumerate(files)), "Write", len(files))
        ]
    total = {n: sum(row[n] for row in table) for n in ("rows", "matched", "dropped", "kept")}
    counted = {"listed": listed, "nameless": nameless, "found": found, "alone": alone}
    return {"files": table, **total, **counted, "beyond": int(beyond), "on": on}


def _lists(value: str, kept: str) -> str:
    # Numbers and bytes as the copy's are read: as text.
    value, kept = (f"CAST({column} AS VARCHAR)" for column in (value, kept))
    source = "read_parquet(?, binary_as_string = true)"
    return f"CREATE TABLE lists AS SELECT {value} AS value, {kept} AS kept FROM {source}"


# What each row of the drop lists is matched by, and the row that was kept in its place.
_LISTS = {
    "url": _lists("url", "kept_url"),
    "md5": _lists("md5", "kept_md5"),
    "url+md5": _lists("md5 || ' ' || url", "kept_md5 || ' ' || kept_url"),
    "key": _lists("key || '/' || row_in_shard", "NULL"),
}

_LOOKED_FOR = """
    CREATE TABLE looked_for AS
    SELECT value FROM lists WHERE value IS NOT NULL
    UNION SELECT kept FROM lists WHERE kept IS NOT NULL"""


def _listed(every: bool) -> str:
    """Values of rows whose kept row is there, how often, and whether a kept row has one too."""
    explained = "true" if every else "kept IS NULL OR kept IN (SELECT value FROM present)"
    return f"""
        CREATE TABLE listed AS
        SELECT value, count(*) AS rows, value IN (SELECT kept FROM lists WHERE kept IS NOT NULL)
            AS shared
        FROM lists WHERE value IS NOT NULL AND ({explained}) GROUP BY value"""


_MATCHED = """
    SELECT file, count(*) FROM present
    WHERE value IN (SELECT value FROM lists WHERE value IS NOT NULL) GROUP BY file"""

_COUNTED = """
    SELECT count(*), count(*) FILTER (value IS NULL),
        count(*) FILTER (value IN (SELECT value FROM present)), count(*) FILTER (
        value IN (SELECT value FROM present) AND value NOT IN (SELECT value FROM listed))
    FROM lists"""

# As none of a shared value goes unlisted.
_BEYOND = """
    SELECT coalesce(sum(greatest(occurrences - rows, 0)), 0)
    FROM (SELECT value, count(*) AS occurrences FROM present GROUP BY value)
    JOIN (SELECT value, count(*) AS rows FROM lists GROUP BY value) USING (value)
    JOIN (SELECT value FROM listed WHERE NOT shared) USING (value)"""

# The last `rows` rows of a shared value go, never its first; all rows of other values.
_DROPPED = """
    SELECT file, place FROM (
        SELECT file, place, rows, shared,
            row_number() OVER (PARTITION BY value ORDER BY file DESC, place DESC) AS from_last,
            count(*) OVER (PARTITION BY value) AS occurrences
        FROM present JOIN listed USING (value))
    WHERE NOT shared OR (from_last <= rows AND from_last < occurrences)
    ORDER BY file, place"""


def _parquet_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    found = folder.glob("*.parquet") if local(folder).is_dir() else []
    files = sorted(path for path in found if path.name[0] != ".")
    if not files:
        raise BadInputError(f"{folder}: no parquet file here.")
    return files


def _require_columns(path: Path, on: On) -> None:
    texts = [column for name in on.split("+") for column in (name, f"kept_{name}")]
    wanted = ["key", "row_in_shard"] if on == "key" else texts
    with parquet_file(path) as file:
        if missing := [name for name in wanted if name not in file.schema_arrow.names]:
            raise BadInputError(
                f"{path}: no column {missing[0]}, so it is no drop list; it has "
                f"{describe(file.schema_arrow)}."
            )


def _select(number: int, path: Path, on: On) -> str:
    """SQL that gives file, place and value of the rows of a metadata file that lists name."""
    if on == "key":
        match = _KEY.fullmatch(path.name)
        if match is None:
            raise BadInputError(
                f"{path}: to match by key, files must be named {METADATA_PATTERN}; rename it or "
                "match by url."
            )
        value = f"{_quoted(match[1])} || '/' || file_row_number"
    else:
        names = {"url": [URL_NAMES], "md5": [MD5_NAMES]}.get(on, [MD5_NAMES, URL_NAMES])
        value = " || ' ' || ".join(_column(path, some) for some in names)
    # Text that is not marked as such, as older writers leave it, is text in the drop lists too.
    options = "file_row_number = true, binary_as_string = true"
    return f"""
        SELECT {number}, place, value FROM (SELECT file_row_number AS place, {value} AS value
            FROM read_parquet({_quoted(_literal(path))}, {options}))
        WHERE value IN (SELECT value FROM looked_for)"""


def _column(path: Path, names: Sequence[str]) -> str:
    with parquet_file(path) as file:
        column = find_column(file.schema_arrow, names)
        if column is None:
            raise BadInputError(
                f"{path}: no column {names[0]} to match by; it has {describe(file.schema_arrow)}."
            )
    return 'CAST("' + column.replace('"', '""') + '" AS VARCHAR)'


def _literal(path: Path) -> str:
    """The path as DuckDB takes it for itself, and not for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", str(path))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _set_limits(connection: duckdb.DuckDBPyConnection, spill: Path, memory_gb: float) -> None:
    memory_gb = min(Settings(memory_gb=memory_gb).memory_gb, MOST_GIB)
    connection.execute(f"SET memory_limit = '{max(1, int(memory_gb * 1024))}MiB'")
    connection.execute(f"SET temp_directory = {_quoted(str(spill))}")
    connection.execute("SET preserve_insertion_order = false")


def _execute(
    connection: duckdb.DuckDBPyConnection, query: str, path: Path, values: list | None = None
) -> duckdb.DuckDBPyConnection:
    try:
        return connection.execute(query, values)
    except duckdb.OutOfMemoryException as error:
        raise BadInputError(
            f"{path}: the join needs more memory; raise its limit (--memory-gb)."
        ) from error
    except duckdb.Error as error:
        raise BadInputError(f"{path}: cannot be read ({error}); fetch it again.") from error


class _Places:
    """Dropped places file by file, from a result sorted by file and place."""

    def __init__(self, result: duckdb.DuckDBPyConnection) -> None:
        self._blocks = self._read(result)
        self._block = next(self._blocks, None)

    @staticmethod
    def _read(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while rows := result.fetchmany(BATCH_ROWS):
            table = np.array(rows, np.int64)
            yield table[:, 0], table[:, 1]

    def of(self, number: int) -> Iterator[np.ndarray]:
        """Blocks of places in file `number`; files must be asked for in order."""
        while self._block is not None:
            files, places = self._block
            low, high = np.searchsorted(files, [number, number + 1])
            if low < high:
                yield places[low:high]
            if high < len(files):
                return
            self._block = next(self._blocks, None)


def _filter(number: int, path: Path, out: Path, dropped: _Places, matched: int) -> dict[str, Any]:
    with parquet_file(path) as file:
        keep = np.ones(file.metadata.num_rows, np.bool_)
    for places in dropped.of(number):
        keep[places] = False
    try:
        filter_parquet(path, out / path.name, keep)
    except pa.ArrowException as error:
        raise BadInputError(f"{path}: cannot be copied ({error}).") from error
    kept = int(np.count_nonzero(keep))
    rows = {"rows": len(keep), "matched": int(matched), "dropped": len(keep) - kept, "kept": kept}
    return {"file": path.name, **rows}


def summary(result: dict[str, Any]) -> Sequence[str]:
    """The report in words."""
    missing = result["listed"] - result["nameless"] - result["found"]
    lines = [
        f"{result['matched']} of {result['rows']} rows match by {result['on']}; "
        f"{result['dropped']} dropped, {result['kept']} kept."
    ]
    if missing:
        lines.append(
            f"{missing} of {result['listed']} rows of the drop lists are not in this copy."
        )
    if result["nameless"]:
        lines.append(
            f"{result['nameless']} rows of the drop lists have no {result['on']}: they cannot be "
            "found by it; try another --on."
        )
    if result["alone"]:
        lines.append(
            f"{result['alone']} rows stay, as this copy lacks the row that was kept in their "
            "place; --every drops them too."
        )
    if result["beyond"]:
        cure = "; --on url+md5 keeps those of another md5" if result["on"] == "url" else ""
        lines.append(
            f"{result['beyond']} of the dropped rows are beyond those that the drop lists name: "
            f"they have the {result['on']} of one that is named, and may have been kept where the "
            f"lists come from{cure}."
        )
    return lines
