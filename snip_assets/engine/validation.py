"""How well compressed rows find true near neighbours, on rows the net has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from .model import LEAST_LENGTH

# With fewer true pairs than these among the validation rows (or than a quarter of the rows),
# the closest pairs stand in for them.
LEAST_PAIRS = 256
# SNIP features: precision where this share of the pairs is found, share found at this precision.
RECALL, PRECISION = 0.99, 0.97
# Decoded codes: precision where this share is found.
CODE_RECALL = 0.80


class Validation:
    """True near neighbours among held-out rows, and how well a net finds them.

    Memory: the squared distances of all pairs, 34 MB for 4,096 rows.

    Parameters
    ----------
    rows
        float[v, D].
    max_distance
        Raw distance below which two rows are a true pair. With fewer such pairs than
        256, or than a quarter of the rows, that many closest pairs are the true ones.
    """

    def __init__(self, rows: np.ndarray, max_distance: float, device: torch.device) -> None:
        self.rows = torch.from_numpy(rows).to(device)
        raw = _distances(nn.functional.normalize(self.rows.float(), dim=1, eps=LEAST_LENGTH))
        self.distance = max_distance
        wanted = min(LEAST_PAIRS, len(rows) // 4)
        if wanted and int((raw < max_distance).sum()) < wanted:
            closest = np.float32(np.partition(raw, wanted - 1)[wanted - 1])
            self.distance = max(max_distance, float(np.nextafter(closest, np.float32(9))))
        self.true = raw < self.distance

    @torch.inference_mode()
    def measure(
        self,
        net: nn.Module,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Find pairs by compressed distance alone.

        Parameters
        ----------
        decode
            Encodes and decodes compressed rows, to measure the codes as well.

        Returns
        -------
        dict
            precision (at recall 0.99), recall (at precision 0.97), code_precision (at recall
            0.80 by decoded codes; 0 without `decode`), and score: the mean precision over all
            recalls, of features and codes together. It hangs on all pairs and not on the few
            farthest, so it is steady enough to choose a net by. NaN where the net gives no numbers.
        """
        scores = {"precision": 0.0, "recall": 0.0, "code_precision": 0.0, "score": 0.0}
        if not self.true.any():
            return scores
        short = net(self.rows)
        if not short.isfinite().all():
            return scores | {"score": np.nan}
        precision, recall, mean = self._curve(_distances(short), RECALL)
        good = np.flatnonzero(precision >= PRECISION)
        scores |= {"precision": float(precision[-1]), "score": mean}
        scores["recall"] = float(recall[good[-1]]) if good.size else 0.0
        if decode is not None:
            precision, _, mean = self._curve(_distances(decode(short)), CODE_RECALL)
            scores["code_precision"] = float(precision[-1])
            scores["score"] += mean
        return scores

    def _curve(self, distances: np.ndarray, recall: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Precision and recall after each candidate, nearest first, up to a recall; the mean."""
        hits = np.sort(distances[self.true])
        most = hits[max(0, math.ceil(recall * len(hits)) - 1)]
        near = np.flatnonzero(distances <= most)
        true = self.true[near[np.argsort(distances[near], kind="stable")]]
        found = np.cumsum(true)
        precision = found / np.arange(1, len(found) + 1)
        return precision, found / len(hits), float(precision[true].mean())

    def facts(self) -> dict[str, Any]:
        """Size of the yardstick."""
        return {
            "rows": len(self.rows),
            "pairs": int(self.true.sum()),
            "distance": self.distance,
        }


def _distances(rows: torch.Tensor) -> np.ndarray:
    """float32[v * (v - 1) / 2]: squared distances of all pairs, row by row."""
    lengths, end = rows.square().sum(1), 0
    out = np.empty(len(rows) * (len(rows) - 1) // 2, np.float32)
    for start in range(0, len(rows), 1024):
        block = rows[start : start + 1024]
        squared = lengths[start : start + 1024, None] + lengths[None, start:]
        squared -= 2 * (block @ rows[start:].T)
        for place, row in enumerate(squared.cpu().numpy(), 1):
            out[end : end + len(row) - place] = row[place:]
            end += len(row) - place
    return out
