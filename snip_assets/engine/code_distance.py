"""How far two rows are, told from their codes alone.

The squared distance of two decoded codes lacks the errors of both, and these differ from word to
word: where words are sparse, two near-duplicates often get different ones, and those lie far
apart; where words are dense, rows that are no duplicates lie that near as well. So distances are
taken relative to the error that is to be expected of the words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .threads import ordered_map
from .trained import TrainedIndex

# Rows with the average error that each word is given ahead of its own: the rare ones keep to it.
PRIOR_ROWS = 5.0
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
BLOCK = 8192


@dataclass(frozen=True)
class CodeErrors:
    """Mean squared errors of the words of a product quantiser.

    Attributes
    ----------
    table
        float32[M, 256], so that the errors of a row's words add up to 1 on average. M is 0 for
        codecs without words, whose rows all count as average.
    """

    table: np.ndarray

    @classmethod
    def none(cls) -> CodeErrors:
        """All rows count as average."""
        return cls(np.empty((0, 256), np.float32))

    @classmethod
    def learn(cls, trained: TrainedIndex, x: np.ndarray, workers: int = 0) -> CodeErrors:
        """From SNIP features of a sample, float32[n, dim], the same for any number of threads."""
        if trained.codec.book is None or not len(x):
            return cls.none()
        parts, words, _ = trained.codec.book.shape

        def work(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            lists = trained.assigner.nearest(block, 1)[0][:, 0]
            residuals = block - trained.centroids[lists]
            codes = trained.codec.encode(residuals)
            error = (residuals - trained.codec.decode(codes)) ** 2
            own = error.reshape(len(block), parts, -1).sum(2, dtype=np.float64)
            place = (codes + np.arange(parts) * words).ravel()
            counts = np.bincount(place, minlength=parts * words)
            return counts, np.bincount(place, own.ravel(), minlength=parts * words)

        blocks = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
        found = list(ordered_map(work, blocks, workers))
        counts = np.sum([c for c, _ in found], axis=0).reshape(parts, words)
        sums = np.sum([s for _, s in found], axis=0).reshape(parts, words)
        mean = sums.sum(1, keepdims=True) / len(x)
        table = (sums + PRIOR_ROWS * mean) / (counts + PRIOR_ROWS)
        return cls((table / max(float(mean.sum()), 1e-12)).astype(np.float32))

    def of(self, codes: np.ndarray) -> np.ndarray:
        """Expected errors of rows, 1 on average: float32[n] from uint8[n, code size]."""
        if not len(self.table):
            return np.ones(len(codes), np.float32)
        total = np.zeros(len(codes), np.float32)
        for part, words in enumerate(self.table):
            total += words[codes[:, part]]
        return total

    @property
    def largest(self) -> float:
        """No row has a larger one."""
        return float(self.table.max(1).sum()) if len(self.table) else 1.0


def relative(distance: np.ndarray, one: np.ndarray, other: np.ndarray, power: float) -> np.ndarray:
    """Squared distances of decoded codes, as they would be between rows of average error.

    Divided by a power of the mean error of both rows. At 1 a distance counts in units of the
    error, at 0 as it is; which of `POWERS` tells most pairs is seen in calibration. Made of
    roots and products, which are the same on every processor.

    Parameters
    ----------
    distance
        float32[n], squared.
    one, other
        float32[n], the expected errors of both rows.
    power
        A multiple of 1/4.

    Returns
    -------
    float32[n]
    """
    # Few rows may be words of the codec themselves, without an error.
    mean = np.maximum(np.float32(0.5) * (one + other), np.float32(1e-12))
    fourth = np.sqrt(np.sqrt(mean))
    for _ in range(round(4 * power)):
        distance = distance / fourth
    return distance


@dataclass(frozen=True)
class CodeScale:
    """Distances of codes on the scale of the raw ones.

    Attributes
    ----------
    errors, power
        See `relative`.
    factor
        `max_distance` for the threshold on the relative distance: so the limit is the same
        number in either, and what is nearer is so in proportion.
    """

    errors: CodeErrors
    power: float
    factor: float

    def estimates(self, decoded: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """float32[n] from squared distances of decoded codes, and the codes of both rows."""
        own = self.errors.of(one), self.errors.of(other)
        return relative(decoded, *own, self.power) * np.float32(self.factor)

    def widest(self, limit: float) -> float:
        """The largest squared distance of decoded codes whose estimate is within a limit."""
        return limit / self.factor * self.errors.largest**self.power * (1 + 1e-5)
