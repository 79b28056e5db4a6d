"""Thresholds and accuracy of the tiers without raw features: SNIP features, and codes alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from .exact import exact_pairs, sum_squares
from .known_pairs import NEAR, KnownPairs
from .settings import Settings

# What decisions that are not looked up in the raw features should hold to, exact copies apart:
# counting these, which are certain, more of the pairs are right.
PRECISION = {"snip": 0.97, "codes": 0.82}


def accuracy(
    snip: np.ndarray,
    decoded: np.ndarray,
    queries: np.ndarray,
    true: np.ndarray,
    settings: Settings,
) -> dict[str, Any]:
    """From a sample that is the whole data set.

    Parameters
    ----------
    snip, decoded
        float32[n, dim].
    queries
        int64[q], positions.
    true
        int64[m], ascending: later * n + earlier of the true pairs of queries.

    Returns
    -------
    For `snip` and `codes`: max_distance, the precision and recall there, and a curve.
    """
    return {
        name: _tier(x, queries, true, settings, PRECISION[name])
        for name, x in (("snip", snip), ("codes", decoded))
    }


def known_accuracy(known: KnownPairs, decoded: np.ndarray) -> dict[str, Any]:
    """The same from what is near some rows among all: a sample has few of the false pairs."""
    ends, total = (known.later, known.earlier), int(known.true.sum())
    return {
        name: _chosen(_apart(x, *ends), known.true, total, PRECISION[name])
        for name, x in (("snip", known.snip), ("codes", decoded))
    }


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.sqrt((x**2).sum(1, keepdims=True))
    return np.ascontiguousarray(x / np.maximum(norms, 1e-12))


def _apart(x: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    parts = (slice(s, s + 8192) for s in range(0, len(one), 8192))
    return np.concatenate([sum_squares(x[one[part]], x[other[part]]) for part in parts])


def _tier(
    x: np.ndarray, queries: np.ndarray, true: np.ndarray, settings: Settings, wanted: float
) -> dict:
    limit = NEAR * settings.max_distance
    later, earlier, _ = exact_pairs(_unit(x), queries, limit, settings.workers)
    key = later.astype(np.int64) * len(x) + earlier
    if not len(key):
        return {"max_distance": settings.max_distance, "precision": 1.0, "recall": 0.0, "curve": []}
    return _chosen(_apart(x, later, earlier), np.isin(key, true), len(true), wanted)


def _chosen(distance: np.ndarray, right: np.ndarray, true: int, wanted: float) -> dict:
    """A threshold, and accuracy over thresholds; `true` pairs there are in all.

    It is the largest with the precision wanted; that of best F1 where this one finds less than
    half as many.
    """
    order = np.argsort(distance, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(order) + 1)
    recall = hits / max(true, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1))
    precise = np.flatnonzero(precision >= wanted)
    if len(precise) and recall[precise[-1]] >= recall[best] / 2:
        best = int(precise[-1])
    # Even in recall.
    steps = np.unique(np.searchsorted(hits, np.linspace(1, hits[-1], 60)))
    steps = steps[steps < len(order)]
    return {
        "max_distance": float(distance[order][best]),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
        "curve": [
            {
                "max_distance": float(distance[order][s]),
                "precision": float(precision[s]),
                "recall": float(recall[s]),
            }
            for s in steps
        ],
    }
