"""The audit: precision, recall and orphans, from fresh random samples and the raw features.

Nothing that the net or the index says is believed: distances are computed from the raw features,
and neighbours found by exact search over all rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow.parquet as pq

from . import shards
from .errors import StaleOutputError
from .files import digest_of, open_npy, read_manifest, write_json
from .neighbours import near_rows
from .run import Run
from .shards import Features, Shard
from .verify import distances

ENDS = ["row", "earlier_row"]
# Of a float32 distance: pairs this near the threshold are computed again in float64.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Interval:
    """A share with its 95% confidence interval; `successes` of `trials`."""

    estimate: float
    low: float
    high: float
    successes: int
    trials: int


def wilson(successes: int, trials: int) -> Interval:
    """A share with its 95% Wilson score interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).
    """
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0, 0, 0)
    z = 1.959963984540054
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / trials + spread / (4 * trials)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), successes, trials)


def with_pairs(run: Run) -> list[Shard]:
    """Shards whose pairs are made."""
    found = [s for s in run.registry.shards if read_manifest(run.layout.duplicate_pairs(s.key))]
    if not found:
        raise StaleOutputError(f"{run.layout.root}: no pairs; materialise duplicate_pairs first.")
    return found


def sample_pairs(run: Run, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of all shards: `row` and `earlier_row`, uint64."""
    found = with_pairs(run)
    counts = [pq.read_metadata(run.layout.duplicate_pairs(s.key)).num_rows for s in found]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    chosen = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
    chosen.sort()
    rows, earlier = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for shard, end, count in zip(found, ends, counts, strict=True):
        local = chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        if len(local):
            table = pq.read_table(run.layout.duplicate_pairs(shard.key), columns=ENDS).take(local)
            rows.append(table["row"].to_numpy())
            earlier.append(table["earlier_row"].to_numpy())
    return np.concatenate(rows), np.concatenate(earlier)


def pair_precision(run: Run, sample: int, seed: int) -> Interval:
    """Share of sampled pairs that are within `max_distance` in the raw features."""
    rows, earlier = sample_pairs(run, sample, seed)
    distance = distances(shards.raw_features(run.registry), rows, earlier)
    return wilson(int((distance <= np.float32(run.settings.max_distance)).sum()), len(rows))


def exact_neighbours(
    features: Features,
    queries: np.ndarray,
    limit: float,
    workers: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """All rows within a distance of some rows, by exact search over everything.

    Memory: a block of 4,096 rows a thread.

    Parameters
    ----------
    queries
        int64[q], row ids.

    Returns
    -------
    query, row : int64[m]
        Row ids, the query itself left out.
    """
    ordinals, more = list(range(len(features.paths))), limit + ROUNDING
    query, row = near_rows(features, queries, more, ordinals, "exact search", workers, unit=True)
    near = distances(features, query, row) <= np.float32(limit)
    return query[near], row[near]


def query_recall(
    run: Run, sample: int, seed: int, drawn_from: Collection[str] | None = None
) -> Interval:
    """Share of the true pairs of sampled rows that were found.

    Rows are drawn at random from the shards with pairs; their true partners among the same
    shards come from exact search. Exact copies count as their first copy. A row with
    `max_partners` partners or more keeps the nearest only: its others count as found.

    Parameters
    ----------
    drawn_from
        Keys of the shards that rows are drawn from; default: all. The result is then noted, for
        `last_recall`.
    """
    found = _query_recall(run, sample, seed, drawn_from)
    noted = _noted(run, sample, seed)
    # An equal note is left alone; without trials the estimate is NaN, which equals nothing.
    if drawn_from is None and (noted is None or _counts(noted) != _counts(found)):
        write_json(run.layout.recall, {"of": _subject(run, sample, seed), **asdict(found)})
    return found


def last_recall(run: Run, sample: int, seed: int) -> Interval:
    """What `query_recall` found on just these pairs; measured now if it was not."""
    return _noted(run, sample, seed) or query_recall(run, sample, seed)


def _noted(run: Run, sample: int, seed: int) -> Interval | None:
    try:
        noted = json.loads(run.layout.recall.read_text())
        if noted.pop("of") == _subject(run, sample, seed):
            return Interval(**noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _counts(found: Interval) -> tuple[int, int]:
    return found.successes, found.trials


def _subject(run: Run, sample: int, seed: int) -> str:
    made = {s.key: run.version(run.layout.duplicate_pairs(s.key), s.key) for s in with_pairs(run)}
    most = run.settings.max_distance, run.settings.max_partners
    return digest_of([made, sample, seed, *most])


def _query_recall(run: Run, sample: int, seed: int, drawn_from: Collection[str] | None) -> Interval:
    ready = with_pairs(run)
    ids = _rows_of(ready)
    some = ids if drawn_from is None else _rows_of([s for s in ready if s.key in drawn_from])
    later, first = run.exact_copies(ready[-1].ordinal)
    first_of = np.arange(run.registry.rows)
    first_of[later] = first

    def drawn(rows: np.ndarray) -> np.ndarray:
        chosen = np.random.default_rng(seed).choice(rows, min(sample, len(rows)), replace=False)
        return np.unique(first_of[chosen])

    own, subject = drawn(some), _subject(run, sample, seed)
    if drawn_from is None:
        query, row = _ahead.take(subject, own) or _neighbours(run, own)
    else:
        # The rows of the whole audit too, which is next: to read all rows takes longest.
        query, row = _neighbours(run, np.union1d(own, drawn(ids)))
        _ahead.keep(subject, query, row)
        query, row = _of(own, query, row)
    query, row = query[np.isin(row, ids)], row[np.isin(row, ids)]
    ends = np.stack([first_of[query], first_of[row]])
    ends = np.unique(np.sort(ends[:, ends[0] != ends[1]], axis=0), axis=1)
    true = set(zip(ends[1].tolist(), ends[0].tolist(), strict=True))
    return wilson(len(_found(run, ready, true)), len(true))


def _neighbours(run: Run, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raw = shards.raw_features(run.registry)
    return exact_neighbours(raw, queries, run.settings.max_distance, run.settings.workers)


def _of(queries: np.ndarray, query: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own = np.isin(query, queries)
    return query[own], row[own]


class _Ahead:
    """Neighbours that were searched for together with others, for the one audit that needs them."""

    def __init__(self) -> None:
        self._found: tuple[str, np.ndarray, np.ndarray] | None = None

    def keep(self, subject: str, query: np.ndarray, row: np.ndarray) -> None:
        self._found = subject, query, row

    def take(self, subject: str, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Those of some rows; not a second time, since an audit measures anew."""
        found, self._found = self._found, None
        return _of(queries, *found[1:]) if found is not None and found[0] == subject else None


_ahead = _Ahead()


def _rows_of(some: Sequence[Shard]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(np.arange(s.start, s.stop) for s in some)])


def _found(run: Run, ready: list[Shard], wanted: set[tuple[int, int]]) -> set[tuple[int, int]]:
    rows = np.array(sorted({a for a, _ in wanted}), np.uint64)
    found = set()
    for shard in ready:
        low, high = np.searchsorted(rows, [shard.start, shard.stop])
        if low == high:
            continue
        table = pq.read_table(run.layout.duplicate_pairs(shard.key), columns=ENDS)
        row, earlier = table["row"].to_numpy(), table["earlier_row"].to_numpy()
        here = np.isin(row, rows[low:high])
        found |= wanted.intersection(zip(row[here].tolist(), earlier[here].tolist(), strict=True))
        names, count = np.unique(row[here], return_counts=True)
        heavy = set(names[count >= run.settings.max_partners].tolist())
        found |= {pair for pair in wanted if pair[0] in heavy}
    return found


def orphans(run: Run, sample: int, seed: int) -> Interval:
    """Share of sampled dropped rows without a kept row within `max_distance`: must be none."""
    folder = run.layout.duplicate_groups
    kept = open_npy(folder / "kept_row.npy")
    dropped = np.asarray(open_npy(folder / "dropped_rows.npy")).astype(np.int64)
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(dropped, min(sample, len(dropped)), replace=False))
    target = np.asarray(kept[rows]).astype(np.int64)
    stays = np.asarray(kept[target]).astype(np.int64) == target
    distance = distances(shards.raw_features(run.registry), rows, target)
    bad = ~stays | (distance > np.float32(run.settings.max_distance))
    return wilson(int(bad.sum()), len(rows))
