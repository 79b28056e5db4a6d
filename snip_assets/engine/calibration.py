"""What calibration reads and what it chooses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

QUERIES = 2048
FEWEST_QUERIES = 256
SAMPLE_ROWS = 262_144


@dataclass
class Calibration:
    """What calibration chose, and the curves it was read from.

    Attributes
    ----------
    slack, radius, probes
        See `list_queries.CandidateRule` and `assign`; `probes` is the most lists a row probes.
    width, axis_scale, short_slack
        Leading axes that preselect, their steps a unit of length, and the slack on them.
    snip_limit
        Candidates beyond this SNIP distance are dropped before raw rows are read.
    snip_max_distance, code_max_distance
        Thresholds of the tiers without raw features (see `tiers`); that of codes on their
        relative distance.
    recall, lost_by_probe, lost_by_code, lost_by_short_code, lost_by_snip_limit
        On the sampled pairs, with `sampled_pairs` of them.
    candidates_per_row, probes_per_row
        Expected at the size of the data set.
    stand_ins
        Whether there were so few pairs that rows moved towards others stood in for some.
    curve
        Recall and candidates over slack.
    code_power
        Distances of codes are divided by this power of their expected error (see
        `code_distance.relative`). 0: as they are.
    tiers
        Precision and recall of the tiers at their thresholds, with their curves.
    """

    slack: float
    radius: float
    probes: int
    width: int
    axis_scale: float
    short_slack: float
    snip_limit: float
    snip_max_distance: float
    code_max_distance: float
    recall: float
    lost_by_probe: float
    lost_by_code: float
    lost_by_short_code: float
    lost_by_snip_limit: float
    sampled_pairs: int
    candidates_per_row: float
    probes_per_row: float
    stand_ins: bool
    code_power: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    tiers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain value."""
        return asdict(self)


@dataclass
class Sample:
    """Sampled rows, ascending, first copies only.

    Attributes
    ----------
    raw
        float32[n, D], L2-normalised; None where their true pairs need not be searched.
    snip
        float32[n, dim].
    fresh
        bool[n]: rows that the index was not trained on; queries are drawn from these first.
    rows
        Rows of the whole data set.
    copies
        Later exact copies that were left out; 0 if unknown.
    """

    raw: np.ndarray | None
    snip: np.ndarray
    fresh: np.ndarray
    rows: int
    copies: int = 0

    def queries(self, count: int, seed: int, *, every: bool = False) -> np.ndarray:
        """Positions of random rows, ascending: of fresh ones where there are enough, or of all."""
        order = np.random.default_rng(seed).permutation(len(self.snip))
        order = order[np.argsort(~self.fresh[order], kind="stable")]
        fresh = int(self.fresh.sum())
        alone = fresh >= FEWEST_QUERIES and not every
        return np.sort(order[: min(count, fresh) if alone else count])


def affordable(rows: int, dim: int) -> float:
    """Floating-point operations that exact search may cost.

    About a fifth of the work of compressing the data set with the default net, at least 0.4 and at
    most 4 TFLOP.
    """
    return min(max(0.1 * 2.0 * rows * 1024 * (dim + 128), 4e11), 4e12)


def budget(rows: int, dim: int) -> int:
    """Rows to sample: as many as exact search of the fewest queries can afford, 262,144 at most.

    So the sample stays below 0.8 GB at 768 numbers, however large the data set is.
    """
    most = affordable(rows, dim) / (2.0 * min(QUERIES, rows) * (dim + 128))
    return int(min(rows, most, SAMPLE_ROWS))
