"""Drift: do net and index still fit the rows that came after they were trained?

Both are trained once, on the shards that were there. Two things can go wrong later: new rows may
differ from what was seen, so that codes lie further from them and at last true pairs are lost; or
there may be so many that the number of inverted lists, chosen by the rows at training, is far too
small. All of it is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .audit import Interval, recall_into, wilson, with_pairs
from .errors import StaleOutputError
from .run import Run
from .shards import Shard
from .storage.files import read_manifest


@dataclass(frozen=True)
class Drift:
    """What has come since the index was trained.

    Attributes
    ----------
    trained_rows, fresh_rows
        Rows of the shards that were there at training, and of those that came later; of shards
        with pairs only.
    recall
        Recall of the pairs of fresh rows with sampled earlier ones (no trials when there are none).
    target
        What it should be: `target_recall`; of a tier without raw features what calibration
        measured for it, where that is less.
    code_error
        Mean squared quantisation error of fresh rows, as a multiple of that of the rows at
        training: 1 when there are none.
    """

    trained_rows: int
    fresh_rows: int
    recall: Interval
    target: float
    code_error: float = 1.0

    @property
    def growth(self) -> float:
        """Rows now, as a multiple of those at training."""
        return (self.trained_rows + self.fresh_rows) / max(self.trained_rows, 1)


def measure(run: Run, sample: int, seed: int) -> Drift:
    """Compare the pairs of fresh rows with exact search in the raw features, as the audit does.

    Parameters
    ----------
    sample
        See `audit.recall_into`.

    Raises
    ------
    StaleOutputError
        There is no trained index, or there are no pairs.
    """
    manifest = read_manifest(run.layout.trained_index)
    if manifest is None:
        raise StaleOutputError(f"{run.layout.trained_index}: not made yet; train the index first.")
    ready = with_pairs(run)
    trained = manifest.facts["shards_seen"]
    if not isinstance(trained, dict):
        raise StaleOutputError(
            f"{run.layout.trained_index}: made by an older version; run `snip dedup`."
        )
    # One whose rows were replaced since has a key that the training saw.
    keys = {s.key for s in ready if trained.get(s.key) == run.rows_version(s.key)}
    seen, fresh = ([s for s in ready if (s.key in keys) == known] for known in (True, False))
    rows = sum(s.rows for s in fresh)
    recall = recall_into(run, fresh, sample, seed) if rows else wilson(0, 0)
    before, now = _code_error(run, seen), _code_error(run, fresh)
    error = now / before if before and now else 1.0
    return Drift(sum(s.rows for s in seen), rows, recall, _target(run), error)


def _code_error(run: Run, some: Sequence[Shard]) -> float:
    """Mean squared quantisation error of the rows of some shards, as their encoding noted it."""
    found = ((s, read_manifest(run.layout.index_shards(s.key))) for s in some)
    noted = [(s.rows, m.facts["mean_error"]) for s, m in found if m is not None]
    rows = sum(count for count, _ in noted)
    return sum(count * error for count, error in noted) / rows if rows else 0.0


def _target(run: Run) -> float:
    target, tier = run.settings.target_recall, run.settings.tier
    return target if tier == "raw" else min(target, run.calibration().tiers[tier]["recall"])
