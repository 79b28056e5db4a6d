"""True pairs: what exact search over the raw features finds for a random sample of rows.

A pair counts at its earlier row: so the pairs of a shard come from a search of its own rows, and an
arrival leaves those of all other shards as they are. They are kept, by shard, in
`audit/true_pairs-{seed}.parquet` (earlier_row, row; in the file's metadata, of each shard, what it
was searched with), and only what is missing is searched for.

Rows are sampled by tickets: those whose hash, seeded, is within a limit. So a smaller sample is
part of a larger one, and rows that arrive do not change which others are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import shards, threads
from .features import Features
from .neighbours import near_rows
from .run import Run
from .sample import drawn
from .shards import Shard
from .storage.files import atomic_path, digest_of, read_manifest
from .storage.locks import lock
from .storage.working_copies import discard
from .verify import distances

SCHEMA = pa.schema([("earlier_row", pa.uint64()), ("row", pa.uint64())])
_SEARCHED = b"searched"
# Of a float32 distance: pairs this near the threshold are computed again in float64.
ROUNDING = 1e-4


def exact_neighbours(
    features: Features,
    queries: np.ndarray,
    limit: float,
    workers: int = 0,
    ordinals: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All rows within a distance of some rows, by exact search.

    Memory: the queries, and a block of 4,096 rows a thread.

    Parameters
    ----------
    queries
        int64[q], row ids.
    ordinals
        Shards to search; default: all.

    Returns
    -------
    query, row : int64[m]
        Row ids, the query itself left out.
    """
    some = list(range(len(features.paths)) if ordinals is None else ordinals)
    more = limit + ROUNDING
    query, row = near_rows(features, queries, more, some, "exact search", workers, unit=True)
    near = distances(features, query, row) <= np.float32(limit)
    return query[near], row[near]


@dataclass
class _Known:
    """What was searched before: of each shard the rows that it stands on, and the largest share."""

    earlier: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    searched: dict[str, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Known:
        """As it was written; nothing when that cannot be read, since it can be found again."""
        try:
            table = pq.read_table(path, schema=SCHEMA)
            searched = json.loads(pq.read_schema(path).metadata[_SEARCHED])
            earlier, row = (table[name].to_numpy().astype(np.int64) for name in SCHEMA.names)
            return cls(earlier, row, {key: (str(on), float(most)) for key, (on, most) in searched})
        except (OSError, pa.ArrowException, ValueError, TypeError, KeyError):
            return cls()

    def write(self, path: Path) -> None:
        order = np.lexsort((self.earlier, self.row))
        columns = [a[order].astype(np.uint64) for a in (self.earlier, self.row)]
        text = json.dumps(sorted(self.searched.items()))
        table = pa.table(columns, schema=SCHEMA.with_metadata({_SEARCHED: text}))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def outside(self, some: Sequence[Shard]) -> _Known:
        """Without the pairs of some shards."""
        held = ~_inside(self.row, some)
        return _Known(self.earlier[held], self.row[held], dict(self.searched))


def _inside(rows: np.ndarray, some: Sequence[Shard]) -> np.ndarray:
    ends = np.array([end for s in some for end in (s.start, s.stop)], np.int64)
    return np.searchsorted(ends, rows, "right") % 2 == 1


def true_pairs(
    run: Run, ready: Sequence[Shard], some: Sequence[Shard], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs within `max_distance` whose earlier row is sampled.

    Parameters
    ----------
    ready
        Shards whose rows count, by ordinal.
    some
        Those of them that hold the later row.
    share
        Of all rows, to sample.

    Returns
    -------
    earlier_row, row : int64[m]
    """
    path, stands_on = run.layout.true_pairs(seed), _stands_on(run, ready)

    def missing(known: _Known) -> list[Shard]:
        before = {s.key: known.searched.get(s.key, ("", 0.0)) for s in some}
        return [s for s in some if before[s.key][0] != stands_on[s.key] or before[s.key][1] < share]

    known = _Known.read(path)
    if missing(known):
        # Who waits here finds what the other has searched for.
        with lock(path):
            known = _Known.read(path)
            if todo := missing(known):
                known = _searched(run, ready, todo, share, seed, known)
                known.searched |= {s.key: (stands_on[s.key], share) for s in todo}
                known.write(path)
        _sweep(run, path)
    held = _inside(known.row, some) & drawn(known.earlier, seed, share)
    return known.earlier[held], known.row[held]


def _searched(
    run: Run, ready: Sequence[Shard], todo: Sequence[Shard], share: float, seed: int, known: _Known
) -> _Known:
    end = todo[-1].stop
    settings, ordinals = run.settings, [s.ordinal for s in todo]

    def some(shard: Shard) -> np.ndarray:
        rows = np.arange(shard.start, min(shard.stop, end))
        return rows[drawn(rows, seed, share)]

    before = [s for s in ready if s.start < end]
    queries = np.concatenate([*threads.ordered_map(some, before, settings.workers)])
    raw = shards.raw_features(run.registry)
    query, row = exact_neighbours(raw, queries, settings.max_distance, settings.workers, ordinals)
    later = row > query
    others = known.outside(todo)
    earlier, row = (
        np.concatenate(both) for both in ((others.earlier, query[later]), (others.row, row[later]))
    )
    return _Known(earlier, row, others.searched)


def _stands_on(run: Run, ready: Sequence[Shard]) -> dict[str, str]:
    """Key -> digest of the rows of its shard and of all earlier ones, and of the threshold."""
    chain, found = digest_of(run.settings.max_distance), {}
    for shard in ready:
        manifest = read_manifest(run.layout.clip_features(shard.key))
        chain = digest_of([chain, shard.key, shard.start, manifest and manifest.version])
        found[shard.key] = chain
    return found


def _sweep(run: Run, path: Path) -> None:
    """Keep what was found for the run's own seed, and for the last one."""
    own = run.layout.true_pairs(run.settings.seed)
    for other in path.parent.glob("true_pairs-*.parquet"):
        if other not in (own, path):
            discard(other)
