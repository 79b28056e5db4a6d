"""The largest groups and the doubtful ones, with their members."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine import shards
from snip_assets.engine.copies import Among
from snip_assets.engine.files import open_npy
from snip_assets.engine.group_table import far_groups
from snip_assets.engine.run import Run
from snip_assets.engine.verify import distances

LARGEST, DOUBTFUL = 200, 20
LOOKED_AT, SHOWN = 500, 12
BLOCK = 1 << 20
COLUMNS = ["group", "size", "kept", "representative", "largest_distance"]


@dataclass(frozen=True)
class Member:
    """A row of a group; `distance` to the representative, in the raw features."""

    row: int
    distance: float
    kept: bool


@dataclass(frozen=True)
class Group:
    """A group as it is shown.

    Attributes
    ----------
    rank
        From 1.
    members
        Without the representative; at most `SHOWN`.
    spread
        Largest distance of a member to the representative, of the first `LOOKED_AT` members.
    """

    rank: int
    group: int
    size: int
    kept: int
    representative: int
    members: list[Member]
    spread: float


def most_copied(run: Run, count: int = LARGEST) -> list[Group]:
    """The largest groups; members evenly from the nearest to the farthest."""
    table = _top(run.layout.duplicate_groups / "groups.parquet", "size", count)
    return _groups(run, table, lambda number: np.linspace(0, number - 1, SHOWN).astype(int))


def doubtful(run: Run, count: int = DOUBTFUL) -> list[Group]:
    """Groups whose members lie farthest from the representative; the farthest members."""
    folder = run.layout.duplicate_groups
    far = far_groups(folder, 4 * count, COLUMNS)
    table = pa.concat_tables([far, _top(folder / "groups.parquet", "largest_distance", 4 * count)])
    first = np.unique(table["group"].to_numpy(), return_index=True)[1]
    found = _groups(run, table.take(np.sort(first)), lambda n: np.arange(max(0, n - SHOWN), n))
    found.sort(key=lambda g: (-g.spread, g.group))
    return [Group(**{**g.__dict__, "rank": i + 1}) for i, g in enumerate(found[:count])]


def _top(path: Path, by: str, count: int) -> pa.Table:
    """The groups with the largest value of a column; a batch of the file in memory at a time."""
    order = [(by, "descending"), ("group", "ascending")]
    with pq.ParquetFile(path) as file:
        best = file.schema_arrow.empty_table().select(COLUMNS)
        for batch in file.iter_batches(columns=COLUMNS):
            table = pa.concat_tables([best, pa.Table.from_batches([batch])])
            best = table.sort_by(order).slice(0, count)
    return best


def members(labels: np.ndarray, groups: np.ndarray, most: int) -> dict[int, np.ndarray]:
    """The first rows of some groups.

    Parameters
    ----------
    labels
        As in `labels.npy`; gone over once, block by block.
    groups
        int64[n].

    Returns
    -------
    dict
        group -> int64[at most `most`] row ids, ascending.
    """
    wanted = Among(np.unique(groups).astype(np.uint64))
    found: dict[int, list[int]] = {int(group): [] for group in wanted.hashes}
    for start in range(0, len(labels), BLOCK):
        block = np.asarray(labels[start : start + BLOCK]).astype(np.uint64)
        inside = wanted.places(block)
        names = block[inside].astype(np.int64)
        order = np.argsort(names, kind="stable")
        cuts = np.flatnonzero(np.diff(names[order], prepend=-1))
        for rows in np.split(inside[order], cuts[1:]) if len(cuts) else ():
            place = found[int(block[rows[0]])]
            place += (rows[: most - len(place)] + start).tolist()
    return {group: np.array(rows, np.int64) for group, rows in found.items()}


def _groups(run: Run, table: pa.Table, choose: Any) -> list[Group]:
    folder = run.layout.duplicate_groups
    if not len(table):
        return []
    rows_of = members(
        open_npy(folder / "labels.npy"), table["group"].to_numpy().astype(np.int64), LOOKED_AT
    )
    kept_row = open_npy(folder / "kept_row.npy")
    raw = shards.raw_features(run.registry)
    result = []
    for rank, line in enumerate(table.to_pylist(), 1):
        rows = rows_of[line["group"]]
        rows = rows[rows != line["representative"]]
        far = distances(raw, rows, np.full(len(rows), line["representative"], np.int64))
        order = np.lexsort((rows, far))
        chosen = order if len(order) <= SHOWN else order[choose(len(order))]
        shown = [
            Member(int(rows[i]), float(far[i]), bool(int(kept_row[rows[i]]) == int(rows[i])))
            for i in chosen
        ]
        values = {name: int(line[name]) for name in COLUMNS[:4]}
        result.append(Group(rank, **values, members=shown, spread=float(far.max(initial=0))))
    return result


def rows_shown(groups: list[Group]) -> list[int]:
    """Row ids of all cards that these groups need."""
    return [r for g in groups for r in (g.representative, *(m.row for m in g.members))]
