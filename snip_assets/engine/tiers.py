"""Thresholds and accuracy of the tiers without raw features: SNIP features, and codes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .code_distance import POWERS, relative
from .exact import exact_pairs, sum_squares
from .features import normalised
from .known_pairs import NEAR_FACTOR, KnownPairs
from .neighbours import FAR_AXES
from .settings import Settings

# Precision that the threshold of a tier is chosen for: a little above the 0.97 and 0.85 that are
# promised. Exact copies, which are certain, count as right pairs where their number is known.
PRECISION = {"snip": 0.9715, "codes": 0.855}
# But without them the share of wrong pairs may be no more than this many times the share allowed.
EXCUSED = 1.25


def accuracy(
    snip: np.ndarray,
    decoded: np.ndarray,
    errors: np.ndarray,
    queries: np.ndarray,
    true: np.ndarray,
    copies: float,
    settings: Settings,
) -> dict[str, Any]:
    """From a sample that is the whole data set.

    Parameters
    ----------
    snip, decoded
        float32[n, dim].
    errors
        float32[n], what the codes are expected to miss (see `code_distance`).
    queries
        int64[q], positions.
    true
        int64[m], ascending: later * n + earlier of the true pairs of queries.
    copies
        Pairs of exact copies to be expected of as many rows.

    Returns
    -------
    For `snip` and `codes`: max_distance, the precision and recall there, and a curve; for `codes`
    the power of the errors as well.
    """
    found = {}
    for name, x in (("snip", snip), ("codes", decoded)):
        limit = NEAR_FACTOR * settings.max_distance
        later, earlier = exact_pairs(normalised(x), queries, limit, settings.workers, FAR_AXES)
        right = np.isin(later.astype(np.int64) * len(x) + earlier, true)
        weight = np.ones(len(later))
        apart = _apart(x, later, earlier)
        near = _NearPairs(apart, right, weight, len(true), copies, settings.max_distance)
        found[name] = near.decided(name, errors[later], errors[earlier])
    return found


def known_accuracy(known: KnownPairs, decoded: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    """The same from what is near some rows among all: a sample has few of the false pairs."""
    later, earlier, found = known.later, known.earlier, {}
    for name, x in (("snip", known.snip), ("codes", decoded)):
        true = float(known.weight[known.true].sum())
        near = _NearPairs(_apart(x, later, earlier), known.true, known.weight, true)
        found[name] = near.decided(name, errors[later], errors[earlier])
    return found


def _apart(x: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    parts = [slice(s, s + 8192) for s in range(0, max(len(one), 1), 8192)]
    return np.concatenate([sum_squares(x[one[part]], x[other[part]]) for part in parts])


def _f1(precision: Any, recall: Any) -> Any:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


@dataclass(frozen=True)
class _NearPairs:
    """Near pairs: their squared distance, which are right, how many each stands for; right in all.

    `max_distance` is the threshold where there are none.
    """

    distance: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    true: float
    copies: float = 0.0
    max_distance: float = 0.0

    def decided(self, tier: str, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
        """Threshold and accuracy; of codes by the power of their errors that tells most pairs."""
        wanted = PRECISION[tier]
        if tier == "snip" or not len(self.distance):
            return self.chosen(self.distance, wanted)
        tried = [
            {"power": power, **self.chosen(relative(self.distance, one, other, power), wanted)}
            for power in POWERS
        ]
        return max(tried, key=lambda found: _f1(found["precision"], found["recall"]))

    def chosen(self, distance: np.ndarray, wanted: float) -> dict[str, Any]:
        """A threshold, and accuracy over thresholds, copies apart.

        It is the largest with the precision wanted, counting the copies; that of best F1 where this
        one finds less than half as many.
        """
        if not len(distance):
            return {"max_distance": self.max_distance, "precision": 1.0, "recall": 0.0, "curve": []}
        order = np.argsort(distance, kind="stable")
        weight, distance = self.weight[order], distance[order]
        hits, counts = np.cumsum(weight * self.right[order]), np.cumsum(weight)
        precision = hits / counts
        recall = hits / max(self.true, 1)
        best = int(np.argmax(_f1(precision, recall)))
        counted = (hits + self.copies) / (counts + self.copies)
        least = 1 - EXCUSED * (1 - wanted)
        precise = np.flatnonzero((counted >= wanted) & (precision >= least))
        if len(precise) and recall[precise[-1]] >= recall[best] / 2:
            best = int(precise[-1])
        # Even in recall.
        steps = np.unique(np.searchsorted(hits, np.linspace(1, hits[-1], 60)))
        steps = steps[steps < len(order)]
        return {
            "max_distance": float(distance[best]),
            "precision": float(precision[best]),
            "recall": float(recall[best]),
            "curve": [
                {
                    "max_distance": float(distance[s]),
                    "precision": float(precision[s]),
                    "recall": float(recall[s]),
                }
                for s in steps
            ],
        }
