"""Drift: do net and index still fit the rows that came after they were trained?

Both are trained once, on the shards that were there. Two things can go wrong later: new rows may
differ from what was seen, so that true pairs are lost; or there may be so many that the number of
inverted lists, chosen by the rows at training, is far too small. Both are measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .audit import Interval, recall_into, wilson, with_pairs
from .errors import StaleOutputError
from .files import read_manifest
from .run import Run


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
    """

    trained_rows: int
    fresh_rows: int
    recall: Interval
    target: float

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
    # An index trained before this was noted counts as trained on all that is there.
    seen = set(manifest.facts.get("shards_seen", [s.key for s in ready]))
    fresh = [s for s in ready if s.key not in seen]
    rows = sum(s.rows for s in fresh)
    recall = recall_into(run, fresh, sample, seed) if rows else wilson(0, 0)
    return Drift(sum(s.rows for s in ready) - rows, rows, recall, _target(run))


def _target(run: Run) -> float:
    target, tier = run.settings.target_recall, run.settings.tier
    return target if tier == "raw" else min(target, run.calibration().tiers[tier]["recall"])
