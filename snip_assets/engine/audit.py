"""The audit: precision, recall and orphans, from fresh random samples and the raw features.

Nothing that the net or the index says is believed: distances are computed from the raw features,
and true pairs found by exact search (see `truth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import choices, shards
from .errors import StaleOutputError
from .notes import note, noted
from .pair_files import blocks
from .run import Run
from .sample import random_shards, rows_of
from .shards import Shard
from .storage.files import digest_of, open_npy, read_manifest, require
from .storage.parquet_source import parquet_rows
from .truth import true_pairs
from .verify import distances

# Clusters with failures, and with successes, that it takes to estimate their variance.
TELLING = 10
# Rows whose partners in arriving shards are searched for; they are held in memory, twice at first.
MOST_DRAWN = 1 << 15


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
    return _wilson(successes, trials, float(trials))


def _wilson(successes: int, trials: int, independent: float) -> Interval:
    """Wilson's interval of the share, as wide as for `independent` trials."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0, 0, 0)
    z = 1.959963984540054
    share, spread = successes / trials, z * z / independent
    middle = (share + spread / 2) / (1 + spread)
    half = (
        z / (1 + spread) * (share * (1 - share) / independent + spread / (4 * independent)) ** 0.5
    )
    # Rounding must not keep the ends from 0 and 1.
    low = max(0.0, middle - half) if successes else 0.0
    high = min(1.0, middle + half) if successes < trials else 1.0
    return Interval(share, low, high, successes, trials)


def clustered(successes: np.ndarray, trials: np.ndarray) -> Interval:
    """A share of trials that come in clusters, as the pairs of a sampled row do, with its interval.

    Wilson's, for as many independent trials as would have the variance that the clusters show.
    Where fewer than ten of them failed in part or whole, that shows little: then the trials of a
    cluster count as if they succeeded or failed together.

    Source: L. Kish, "Survey Sampling" (1965), sections 2.6 (ratios) and 8.2 (design effect).

    Parameters
    ----------
    successes, trials
        int64[clusters], at least one trial each.
    """
    whole, right = int(trials.sum()), int(successes.sum())
    if whole == 0:
        return wilson(0, 0)
    independent, share, n = whole**2 / float((trials**2).sum()), right / whole, len(trials)
    if (successes < trials).sum() >= TELLING <= (successes > 0).sum():
        variance = n / (n - 1) * float(((successes - share * trials) ** 2).sum()) / whole**2
        independent = min(share * (1 - share) / variance, whole) if variance > 0 else whole
    return _wilson(right, whole, independent)


def with_pairs(run: Run) -> list[Shard]:
    """Shards whose pairs are made; raises StaleOutputError where some have another size."""
    found = [s for s in run.registry.shards if read_manifest(run.layout.duplicate_pairs(s.key))]
    for shard in found:
        require(run.layout.duplicate_pairs(shard.key), f"duplicate_pairs {shard.key}")
    if not found:
        raise StaleOutputError(f"{run.layout}: no pairs; materialise duplicate_pairs first.")
    return found


def sample_pairs(run: Run, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of all shards: `row` and `earlier_row`, uint64."""
    found = with_pairs(run)
    counts = [parquet_rows(run.layout.duplicate_pairs(s.key)) for s in found]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    chosen = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
    chosen.sort()
    rows, earlier = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for shard, end, count in zip(found, ends, counts, strict=True):
        local = chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        if len(local):
            row, earlier_row = _ends(run, shard)
            rows.append(row[local].astype(np.uint64))
            earlier.append(earlier_row[local].astype(np.uint64))
    return np.concatenate(rows), np.concatenate(earlier)


def _ends(run: Run, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Later and earlier rows of all pairs of a shard: int64."""
    found = [*blocks(run.layout.duplicate_pairs(shard.key), run.registry.rows)]
    none = np.empty(0, np.int64)
    row, earlier_row = ([none, *(block[side] for block in found)] for side in (0, 1))
    return np.concatenate(row), np.concatenate(earlier_row)


def pair_precision(run: Run, sample: int, seed: int) -> Interval:
    """Share of sampled pairs that are, in the raw features, as near as they were searched for.

    The result is noted, for `last_precision`.
    """
    rows, earlier = sample_pairs(run, sample, seed)
    distance = distances(shards.raw_features(run.registry), rows, earlier)
    ordinals = np.searchsorted(run.registry.offsets, rows.astype(np.int64), "right") - 1
    most = _searched_within(run)[ordinals]
    found = wilson(int((distance <= most).sum()), len(rows))
    _note(run, run.layout.precision, sample, seed, found)
    return found


def last_precision(run: Run, sample: int, seed: int) -> Interval:
    """What `pair_precision` found on just these pairs; measured now if it was not."""
    return _noted(run, run.layout.precision, sample, seed) or pair_precision(run, sample, seed)


def _searched_within(run: Run) -> np.ndarray:
    """float32[S]: the `max_distance` that the pairs of each shard were found with."""
    found = (read_manifest(run.layout.duplicate_pairs(key)) for key in run.registry.keys)
    now = run.settings.max_distance
    return np.array([m.facts.get("max_distance", now) if m else now for m in found], np.float32)


def query_recall(run: Run, sample: int, seed: int) -> Interval:
    """Share of the true pairs of sampled rows, with later rows, that were found.

    Rows are drawn from the shards with pairs; their true partners among the same shards come from
    exact search. Where there are many, only random shards are searched (`choices.searched_rows`)
    and as many more rows are drawn: so as many pairs are looked at as if `sample` rows were
    searched for in all, at a cost that hardly grows. Exact copies count as their first copy. A row
    with `max_partners` partners or more keeps the nearest only: its others count as found.

    The result is noted, for `last_recall`.
    """
    ready = with_pairs(run)
    searched = choices.searched_rows(rows_of(ready), sample)
    some = random_shards(ready, searched, "audited", seed)
    found = _recall(run, ready, some, min(1.0, sample / max(1, rows_of(some))), seed)
    _note(run, run.layout.recall, sample, seed, found)
    return found


def recall_into(run: Run, some: Sequence[Shard], sample: int, seed: int) -> Interval:
    """Share of the true pairs of rows of some shards, with earlier rows, that were found.

    Earlier rows are drawn, from all shards with pairs: as large a share of them as `sample` is of
    the rows of these shards, `MOST_DRAWN` at the most.
    """
    ready = with_pairs(run)
    share = min(1.0, sample / max(1, rows_of(some)), MOST_DRAWN / max(1, rows_of(ready)))
    return _recall(run, ready, some, share, seed)


def last_recall(run: Run, sample: int, seed: int) -> Interval:
    """What `query_recall` found on just these pairs; measured now if it was not."""
    return _noted(run, run.layout.recall, sample, seed) or query_recall(run, sample, seed)


def _note(run: Run, path: Path, sample: int, seed: int, found: Interval) -> None:
    before = _noted(run, path, sample, seed)
    # An equal note is left alone; without trials the estimate is NaN, which equals nothing.
    if before is None or _counts(before) != _counts(found):
        note(path, _subject(run, sample, seed), asdict(found))


def _noted(run: Run, path: Path, sample: int, seed: int) -> Interval | None:
    found = noted(path, _subject(run, sample, seed))
    return None if found is None else Interval(**found)


def _counts(found: Interval) -> tuple[int, int]:
    return found.successes, found.trials


def _subject(run: Run, sample: int, seed: int) -> str:
    made = {s.key: run.version("duplicate_pairs", s.key) for s in with_pairs(run)}
    most = run.settings.max_distance, run.settings.max_partners
    return digest_of([made, sample, seed, *most])


def _recall(
    run: Run, ready: Sequence[Shard], some: Sequence[Shard], share: float, seed: int
) -> Interval:
    searched = float(_searched_within(run).min())
    if searched < np.float32(run.settings.max_distance):
        raise StaleOutputError(
            f"{run.layout}: pairs were searched within {searched:g} only; run `snip dedup` to "
            f"make them again with {run.settings.max_distance:g}."
        )
    earlier, row = true_pairs(run, ready, some, share, seed)
    ends = np.stack([row, earlier])
    # The pairs of a later copy are those of its first copy.
    first = run.first_copies(ends.ravel(), ready[-1].ordinal).reshape(ends.shape)
    true = set(zip(*ends[:, (ends == first).all(0)].tolist(), strict=True))
    # A row is sampled with all its pairs, and those of a row are found or lost together.
    sampled, place = np.unique([pair[1] for pair in true], return_inverse=True)
    found = _found(run, ready, true)
    hit = np.fromiter((pair in found for pair in true), bool, len(true))
    counts = (np.bincount(which, minlength=len(sampled)) for which in (place[hit], place))
    return clustered(*counts)


def _found(run: Run, ready: Sequence[Shard], wanted: set[tuple[int, int]]) -> set[tuple[int, int]]:
    rows = np.array(sorted({a for a, _ in wanted}), np.int64)
    found = set()
    for shard in ready:
        low, high = np.searchsorted(rows, [shard.start, shard.stop])
        if low == high:
            continue
        row, earlier = _ends(run, shard)
        here = np.isin(row, rows[low:high])
        found |= wanted.intersection(zip(row[here].tolist(), earlier[here].tolist(), strict=True))
        names, count = np.unique(row[here], return_counts=True)
        heavy = set(names[count >= run.settings.max_partners].tolist())
        found |= {pair for pair in wanted if pair[0] in heavy}
    return found


def orphans(run: Run, sample: int, seed: int) -> Interval:
    """Share of sampled dropped rows whose kept row is not within `max_distance`: must be none."""
    folder = run.layout.duplicate_groups
    kept = open_npy(folder / "kept_row.npy")
    dropped = open_npy(folder / "dropped_rows.npy")
    draw = np.random.default_rng(seed)
    places = draw.choice(len(dropped), min(sample, len(dropped)), replace=False)
    rows = np.sort(dropped[places].astype(np.int64))
    target = np.asarray(kept[rows]).astype(np.int64)
    stays = np.asarray(kept[target]).astype(np.int64) == target
    distance = distances(shards.raw_features(run.registry), rows, target)
    bad = ~stays | (distance > np.float32(run.settings.max_distance))
    return wilson(int(bad.sum()), len(rows))
