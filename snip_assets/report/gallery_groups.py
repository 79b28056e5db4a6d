"""The largest groups and the doubtful ones, with their members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from snip_assets.engine import shards, threads
from snip_assets.engine.copies import Among
from snip_assets.engine.group_table import top_groups
from snip_assets.engine.run import Run
from snip_assets.engine.storage.files import open_npy
from snip_assets.engine.verify import distances

LARGEST, DOUBTFUL = 200, 20
# Groups that are looked at for the doubtful ones: those that keep most rows, as many farthest ones.
CHAINED = 80
LOOKED_AT, SHOWN = 500, 12
BLOCK = 1 << 20
COLUMNS = ["group", "size", "kept", "representative", "largest_distance"]


@dataclass(frozen=True)
class Member:
    """A row of a group.

    Attributes
    ----------
    distance
        To the row that is framed, in the raw features.
    kept_row, kept_distance
        The kept row that explains it, and the distance to that; itself and 0 where it stays.
    """

    row: int
    distance: float
    kept_row: int
    kept_distance: float

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return self.kept_row == self.row


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


def largest_and_doubtful(
    run: Run, largest: int = LARGEST, doubtful: int = DOUBTFUL
) -> tuple[list[Group], list[Group]]:
    """The largest groups, and those whose members lie farthest from the representative.

    Of the largest, members evenly from the nearest to the farthest are shown; of the others the
    farthest. Table and labels are gone over once for both.
    """
    folder = run.layout.duplicate_groups
    wanted = {"size": largest, "kept": CHAINED, "largest_distance": CHAINED}
    top = top_groups(folder, wanted, COLUMNS)
    chained = top["kept"].filter(pc.greater(top["kept"]["kept"], 1))
    far = pa.concat_tables([chained, top["largest_distance"]])
    far = far.take(np.sort(np.unique(far["group"].to_numpy(), return_index=True)[1]))
    looked_at = _looked_at(run, [*top["size"].to_pylist(), *far.to_pylist()])
    many, wide = looked_at[: len(top["size"])], looked_at[len(top["size"]) :]
    wide.sort(key=lambda g: (-g.spread, g.line["group"]))
    return (
        [g.shown(rank, _evenly) for rank, g in enumerate(many, 1)],
        [g.shown(rank, _farthest) for rank, g in enumerate(wide[:doubtful], 1)],
    )


def _evenly(number: int) -> np.ndarray:
    return np.linspace(0, number - 1, SHOWN).astype(int)


def _farthest(number: int) -> np.ndarray:
    return np.arange(number - SHOWN, number)


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

    def of(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = labels[start : start + BLOCK]
        inside = wanted.places(block)
        return block[inside], inside + start

    for names, rows in threads.ordered_map(of, range(0, len(labels), BLOCK)):
        order = np.argsort(names, kind="stable")
        cuts = np.flatnonzero(np.diff(names[order].astype(np.int64), prepend=-1))
        for own in np.split(order, cuts[1:]) if len(cuts) else ():
            place = found[int(names[own[0]])]
            place += rows[own[: most - len(place)]].tolist()
    return {group: np.array(rows, np.int64) for group, rows in found.items()}


@dataclass(frozen=True)
class _LookedAt:
    """A line of the table of groups, its first other members, and what is known of each."""

    line: dict[str, Any]
    rows: np.ndarray
    far: np.ndarray
    kept_row: np.ndarray
    kept_distance: np.ndarray

    @property
    def spread(self) -> float:
        """Largest distance to the representative."""
        return float(self.far.max(initial=0))

    def shown(self, rank: int, choose: Callable[[int], np.ndarray]) -> Group:
        """The group with the members that `choose` takes of more than `SHOWN`, by distance."""
        order = np.lexsort((self.rows, self.far))
        chosen = order if len(order) <= SHOWN else order[choose(len(order))]
        some = [self._member(int(place)) for place in chosen]
        values = {name: int(self.line[name]) for name in COLUMNS[:4]}
        return Group(rank, **values, members=some, spread=self.spread)

    def _member(self, place: int) -> Member:
        explained = int(self.kept_row[place]), float(self.kept_distance[place])
        return Member(int(self.rows[place]), float(self.far[place]), *explained)


def _looked_at(run: Run, lines: list[dict[str, Any]]) -> list[_LookedAt]:
    if not lines:
        return []
    folder = run.layout.duplicate_groups
    groups = np.array([line["group"] for line in lines], np.int64)
    rows_of = members(open_npy(folder / "labels.npy"), groups, LOOKED_AT)
    own = [rows_of[line["group"]] for line in lines]
    own = [rows[rows != line["representative"]] for rows, line in zip(own, lines, strict=True)]
    ends = np.cumsum([len(rows) for rows in own])[:-1]
    # Single rows, here and there on the disk: all asked for together.
    rows = np.concatenate([np.empty(0, np.int64), *own])
    centres = np.repeat(
        np.array([line["representative"] for line in lines], np.int64), [len(r) for r in own]
    )
    far = distances(shards.raw_features(run.registry), rows, centres)
    decided = (open_npy(folder / name)[rows] for name in ("kept_row.npy", "kept_distance.npy"))
    known = [np.split(column, ends) for column in (far, *decided)]
    return [_LookedAt(*part) for part in zip(lines, own, *known, strict=True)]


def rows_shown(groups: list[Group]) -> list[int]:
    """Row ids of all cards that these groups need."""
    return [r for g in groups for r in (g.representative, *(m.row for m in g.members))]
