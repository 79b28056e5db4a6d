"""Rows as the index alone knows them, for the tier `codes`."""

from __future__ import annotations

import numpy as np

from .code_distance import CodeScale
from .layout import Layout
from .shards import Registry
from .storage.files import open_npy
from .trained import TrainedIndex


class CodedRows:
    """Rows of a data set by row id: centroid plus decoded residual.

    Parameters
    ----------
    layout, registry
        Where the index shards are, and which row ids each has.
    trained
        The index that they were encoded with.
    scale
        Makes distances of codes comparable with raw ones.
    """

    def __init__(
        self, layout: Layout, registry: Registry, trained: TrainedIndex, scale: CodeScale
    ) -> None:
        self.trained, self.scale, self.offsets = trained, scale, registry.offsets
        self._folders = [layout.index_shards(key) for key in registry.keys]
        self._places: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32[n, dim] by row id."""
        home, codes = self._codes(rows)
        return self.trained.centroids[home] + self.trained.codec.decode(codes)

    def estimates(self, left: np.ndarray, right: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Squared distances on the scale of the raw ones: float32[n].

        Parameters
        ----------
        left, right
            [n], row ids.
        decoded
            float32[n], squared distances of their decoded codes.
        """
        return self.scale.estimates(decoded, self._codes(left)[1], self._codes(right)[1])

    def _codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[n] lists and uint8[n, code size] codes."""
        rows = np.asarray(rows).astype(np.int64)
        home = np.empty(len(rows), np.int64)
        codes = np.empty((len(rows), self.trained.codec.size), np.uint8)
        ordinal = np.searchsorted(self.offsets, rows, "right") - 1
        for number in np.unique(ordinal):
            here = ordinal == number
            place, offsets, stored = self._shard(int(number))
            at = place[rows[here] - self.offsets[number]]
            home[here] = np.searchsorted(offsets, at, "right") - 1
            codes[here] = stored[at]
        return home, codes

    def _shard(self, ordinal: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a shard: place in the file by row, where each list starts, codes by place.

        Memory: 4 bytes a row for each shard that was asked for.
        """
        folder = self._folders[ordinal]
        if ordinal not in self._places:
            rows = np.asarray(open_npy(folder / "rows.npy"))
            offsets = open_npy(folder / "list_offsets.npy")
            place = np.empty(len(rows), np.min_scalar_type(len(rows)))
            place[rows] = np.arange(len(rows), dtype=place.dtype)
            codes = open_npy(folder / "codes.npy")
            self._places[ordinal] = place, np.asarray(offsets), codes
        return self._places[ordinal]
