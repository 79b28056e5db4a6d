"""Marks that people gave to pairs: taken in from the pages' CSV, kept in the output folder.

`reviewed_pairs.parquet`: row, earlier_row (uint64), distance (float32, raw, computed again), kind
(random, inside, outside), right (bool: the two show the same picture); by (row, earlier_row).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from snip_assets.engine import audit, shards
from snip_assets.engine.audit import Interval
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.storage.files import digest_of, write_parquet
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.working_copies import discard
from snip_assets.engine.verify import distances

KINDS = ("random", "inside", "outside")
MARKS = {"right": True, "wrong": False, "none": None}
COLUMNS = ("row", "earlier_row", "set", "mark")
MOST_MARKS = 1_000_000
# A pair whose distance now differs by more from the one that was noted or shown has other rows.
SAME = 1e-4
# Of the share of right pairs over their distance.
BINS = 10
SCHEMA = pa.schema(
    [
        ("row", pa.uint64()),
        ("earlier_row", pa.uint64()),
        ("distance", pa.float32()),
        ("kind", pa.string()),
        ("right", pa.bool_()),
    ]
)
# Kind, and whether it is right; None takes a mark back.
Mark = tuple[str, bool | None]
# A pair, its mark, and its raw distance when that was given; NaN where a CSV does not say.
Given = tuple[tuple[int, int], Mark, float]


def path_of(layout: Layout) -> Path:
    """Where the marks lie."""
    return layout.root / "reviewed_pairs.parquet"


def load(layout: Layout) -> pa.Table:
    """All marks taken in so far; none when there are none."""
    path = path_of(layout)
    if not path.exists():
        return SCHEMA.empty_table()
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{path}: cannot be read ({error}); put a copy of it back, or "
            "delete it: then its marks are lost."
        ) from error


def current(layout: Layout) -> pa.Table:
    """The marks whose rows are those that were marked: no shard of theirs was replaced since."""
    table, registry = load(layout), shards.load(layout)
    table = table.filter(pc.less(table["row"], registry.rows))
    if not len(table):
        return table
    ends = (table[name].to_numpy() for name in ("row", "earlier_row"))
    far = distances(shards.raw_features(registry), *ends)
    return table.filter(np.abs(far - table["distance"].to_numpy()) <= SAME)


def version(layout: Layout) -> str:
    """Changes when the marks do."""
    return digest_of(load(layout).to_pylist())


def take_in(layout: Layout, path: Path) -> dict[str, int]:
    """Add the marks of a CSV file; a pair marked before gets its new mark.

    Parameters
    ----------
    layout
        The output folder whose rows the marks are about.
    path
        Columns row, earlier_row, set (random, inside, outside), mark (right, wrong, or none, which
        takes an earlier one back), and distance (raw, as it was shown; may be missing). Others are
        ignored. A line whose rows lie at another distance now is about other rows: it is left out.

    Returns
    -------
    dict
        read, new, changed, withdrawn, outdated (lines, and marks kept so far, that give another
        distance than their rows have now), total.

    Raises
    ------
    BadInputError
        A column is missing or a line says something that cannot be.
    """
    # What another process takes in meanwhile stays too.
    with lock(path_of(layout)):
        return _added(layout, path)


def _added(layout: Layout, path: Path) -> dict[str, int]:
    registry = shards.load(layout)
    raw = shards.raw_features(registry)
    before = current(layout)
    outdated = len(load(layout)) - len(before)
    marks: dict[tuple[int, int], Mark] = {
        (m["row"], m["earlier_row"]): (m["kind"], m["right"]) for m in before.to_pylist()
    }
    former = dict(marks)
    given = list(_read(path, registry.rows))
    ends = np.array([pair for pair, *_ in given], np.uint64).reshape(-1, 2)
    moved = np.abs(distances(raw, *ends.T) - np.array([shown for *_, shown in given])) > SAME
    outdated += int(np.count_nonzero(moved))
    for pair, (kind, right), _ in compress(given, ~moved):
        # A pair of the random sample stays one, on whichever page it was marked.
        sampled = "random" in (kind, marks.get(pair, ("",))[0])
        marks[pair] = "random" if sampled else kind, right
    marks = {pair: mark for pair, mark in marks.items() if mark[1] is not None}
    ordered = sorted(marks)
    ends = np.array(ordered, np.uint64).reshape(-1, 2)
    far = distances(raw, *ends.T)
    columns = [ends[:, 0], ends[:, 1], far, *zip(*(marks[p] for p in ordered), strict=True)]
    if ordered:
        write_parquet(path_of(layout), pa.table([pa.array(c) for c in columns], schema=SCHEMA))
    else:
        discard(path_of(layout))
    stayed = former.keys() & marks.keys()
    return {
        "read": len(given),
        "new": len(marks) - len(stayed),
        "changed": sum(former[pair] != marks[pair] for pair in stayed),
        "withdrawn": len(former) - len(stayed),
        "outdated": outdated,
        "total": len(marks),
    }


def _read(path: Path, rows: int) -> Iterator[Given]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if absent := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
                raise BadInputError(
                    f"{path}: no column {absent[0]}, with commas between columns; export the marks "
                    "from the report's pages."
                )
            for line, entry in enumerate(reader, 2):
                if line > MOST_MARKS + 1:
                    raise BadInputError(f"{path}: more than {MOST_MARKS:,} lines; split the file.")
                yield _mark(f"{path}, line {line}", entry, rows)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path}: cannot be read as CSV ({error}).") from error


def _mark(where: str, entry: dict[str, str | None], rows: int) -> Given:
    names = *COLUMNS, "distance"
    row, earlier, kind, mark, shown = ((entry.get(name) or "").strip() for name in names)
    if not all(re.fullmatch("[0-9]{1,19}", text) for text in (row, earlier)):
        raise BadInputError(f"{where}: row {row[:40]!r} and earlier_row {earlier[:40]!r}; numbers.")
    if not 0 <= int(earlier) < int(row) < rows:
        raise BadInputError(
            f"{where}: row {row} and earlier_row {earlier} are no pair: the earlier one is the "
            f"smaller, and there are {rows} rows."
        )
    if kind not in KINDS:
        raise BadInputError(f"{where}: set {kind[:40]!r}; one of {', '.join(KINDS)}.")
    if mark not in MARKS:
        raise BadInputError(f"{where}: mark {mark[:40]!r}; one of {', '.join(MARKS)}.")
    return (int(row), int(earlier)), (kind, MARKS[mark]), _shown(where, shown)


def _shown(where: str, text: str) -> float:
    try:
        shown = float(text or "nan")
    except ValueError:
        shown = math.inf
    if math.isinf(shown):
        raise BadInputError(f"{where}: distance {text[:40]!r}; a number, or nothing.")
    return shown


def shares(table: pa.Table, max_distance: float) -> dict[str, Interval]:
    """Share of right pairs for each kind that has marks, with its interval.

    Of marks that were made at another threshold those count whose pair is on the same side of
    this one.
    """
    result = {}
    kinds, right = np.array(table["kind"].to_pylist()), np.array(table["right"].to_pylist(), bool)
    near = table["distance"].to_numpy() <= np.float32(max_distance)
    for kind in KINDS:
        here = (kinds == kind) & (near != (kind == "outside"))
        if here.any():
            result[kind] = audit.wilson(int(right[here].sum()), int(here.sum()))
    return result


def by_distance(table: pa.Table) -> list[tuple[float, float, float, float, int]]:
    """Share of right pairs by distance: (middle, share, low, high, marks) for each filled bin."""
    far, right = table["distance"].to_numpy(), np.array(table["right"].to_pylist(), bool)
    if not len(far):
        return []
    edges = np.linspace(0, max(float(far.max()), 1e-6), BINS + 1)
    inside = np.clip(np.searchsorted(edges, far, "right") - 1, 0, BINS - 1)
    points = []
    for number in np.unique(inside):
        here = inside == number
        found = audit.wilson(int(right[here].sum()), int(here.sum()))
        middle = float(edges[number] + edges[number + 1]) / 2
        points.append((middle, found.estimate, found.low, found.high, found.trials))
    return points
