"""The trained index: centroids of the inverted lists and the codec of the residuals, no rows.

Centroids are rounded to 8 bits a number before the codec is trained on the residuals to them, so
they cost a quarter of the space at no loss: any point may serve as a centroid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numba import njit

from .assign import BLOCK, Assigner
from .codec import Codec, empty_index
from .errors import BadInputError
from .storage.files import atomic_path
from .threads import ordered_map

ITERATIONS = 10
ROWS_PER_LIST = 128
CODEC_ROWS = 65_536
FEW_ROWS = 262_144


def choose_lists(rows: int) -> int:
    """Number of inverted lists for a data set: 0.6 times the square root of its rows.

    Assignment costs `lists` distances of 128 numbers a row, the join about `rows / lists` of a
    few dozen; the sum is least near this number, and centroids stay a small share of the index.
    Up to 262,144 rows there are more, one for 32 rows and up to 1,024: they cost a second or two
    there and make the codes finer.
    """
    few = min(1024, rows // 32) if rows <= FEW_ROWS else 0
    return max(4, min(max(few, round(0.6 * rows**0.5)), rows // 32, 65_536))


def assign_all(assigner: Assigner, x: np.ndarray, count: int, workers: int) -> np.ndarray:
    """Nearest lists of many rows: int32[n, count]."""
    blocks = (x[i : i + BLOCK] for i in range(0, len(x), BLOCK))
    parts = ordered_map(lambda block: assigner.nearest(block, count)[0], blocks, workers)
    return np.concatenate(list(parts))


@njit(nogil=True, cache=True)
def _add(x, home, sums):
    """Add each row to the sum of its list, in the order of the rows."""
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            sums[home[i], d] += x[i, d]


def train_centroids(x: np.ndarray, lists: int, seed: int, workers: int = 0) -> np.ndarray:
    """Lloyd's k-means; the same result for any number of threads.

    Parameters
    ----------
    x
        float32[n, dim]; at most 128 rows a list are used.

    Returns
    -------
    float32[lists, dim]
    """
    random = np.random.default_rng(seed)
    if len(x) > lists * ROWS_PER_LIST:
        x = x[np.sort(random.choice(len(x), lists * ROWS_PER_LIST, replace=False))]
    centroids = x[np.sort(random.choice(len(x), lists, replace=False))].copy()
    for _ in range(ITERATIONS):
        home = assign_all(Assigner(centroids), x, 1, workers)[:, 0]
        sizes = np.bincount(home, minlength=lists)
        sums = np.zeros(centroids.shape, np.float64)
        _add(x, home, sums)
        filled = np.flatnonzero(sizes)
        centroids[filled] = sums[filled] / sizes[filled, None]
        empty = np.flatnonzero(sizes == 0)
        crowded = np.argsort(-sizes, kind="stable")[: len(empty)]
        shift = random.normal(0, 1e-3, (len(empty), x.shape[1])).astype(np.float32)
        centroids[empty] = centroids[crowded] + shift
    return centroids


@dataclass
class TrainedIndex:
    """An empty, trained FAISS `IndexIVF*` and its parts.

    Attributes
    ----------
    index
        The FAISS index.
    centroids
        float32[lists, dim].
    assigner, codec
        Who assigns rows to lists, who encodes residuals.
    """

    index: faiss.IndexIVF
    centroids: np.ndarray
    assigner: Assigner
    codec: Codec

    @classmethod
    def of(cls, index: faiss.IndexIVF) -> TrainedIndex:
        """Take a FAISS index apart."""
        centroids = index.quantizer.reconstruct_n(0, index.nlist)
        return cls(index, centroids, Assigner(centroids), Codec(index))

    @classmethod
    def train(
        cls, x: np.ndarray, lists: int, codec: str, seed: int = 0, workers: int = 0
    ) -> TrainedIndex:
        """Train on SNIP features.

        Parameters
        ----------
        x
            float32[n, dim], n >= 256 for product quantisers.
        lists
            Inverted lists; at most one a row.
        codec
            FAISS name, see `codec.CODECS`.
        """
        lists = min(lists, len(x))
        quantizer = faiss.IndexScalarQuantizer(x.shape[1], faiss.ScalarQuantizer.QT_8bit)
        rough = train_centroids(x, lists, seed, workers)
        quantizer.train(rough)
        quantizer.add(rough)
        index: Any = empty_index(codec, quantizer, lists)
        centroids = quantizer.reconstruct_n(0, lists)
        home = assign_all(Assigner(centroids), x, 1, workers)[:, 0]
        chosen = np.random.default_rng(seed).permutation(len(x))[:CODEC_ROWS]
        residuals = x[chosen] - centroids[home[chosen]]
        if codec.startswith("PQ"):
            if len(residuals) < index.pq.ksub:
                residuals = np.resize(residuals, (int(index.pq.ksub), x.shape[1]))
            index.pq.train(residuals)
        else:
            index.sq.train(residuals)
        index.is_trained = True
        index.quantizer_trains_alone = 0
        index.referenced_objects = [quantizer]
        return cls.of(index)

    @property
    def lists(self) -> int:
        """Number of inverted lists."""
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """Numbers of a SNIP feature."""
        return self.centroids.shape[1]

    def save(self, path: Path) -> None:
        """Write as a plain FAISS file."""
        with atomic_path(path) as temporary:
            faiss.write_index(self.index, str(temporary))

    @classmethod
    def load(cls, path: Path) -> TrainedIndex:
        """Read a FAISS file.

        Raises
        ------
        BadInputError
            It is missing, damaged, or not an IVF index over residuals.
        """
        if not path.exists():
            raise BadInputError(f"{path}: no such file; materialise trained_index.")
        try:
            # The table is for a search by FAISS: 8 kB a list, and most of the time that this takes.
            index = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise BadInputError(f"{path}: not a readable FAISS index ({reason}).") from error
        if not isinstance(index, (faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)):
            raise BadInputError(
                f"{path}: a {type(index).__name__}; expected IndexIVFPQ or IndexIVFScalarQuantizer."
            )
        return cls.of(index)
