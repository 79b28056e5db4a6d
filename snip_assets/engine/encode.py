"""Index shards: the rows of one shard sorted by inverted list, with their codes.

A folder a shard, no copy of the centroids:

- `list_offsets.npy` int64[lists + 1], `codes.npy` uint8[n, code size], `rows.npy` uint32[n] (row
  in shard, ascending inside a list): what goes into the index;
- `probe_offsets.npy` int64[lists + 1], `probe_rows.npy` uint32[m]: the rows that probe each list,
  `errors.npy` float32[m, 2]: squared quantisation error ADC(i, i) of each of these, on the leading
  axes of the residuals (in squared steps, see `axes`) and as a whole: what the join needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numba import njit

from .assign import BLOCK
from .axes import Axes
from .features import as_float32
from .progress import task
from .storage.files import atomic_path, save_npy
from .storage.row_file import RowFile
from .threads import ordered_map
from .trained import TrainedIndex


@njit(nogil=True, cache=True)
def _less(x, rows, numbers):
    """Each row of x less one of some rows, by number."""
    out = np.empty(x.shape, np.float32)
    for i in range(x.shape[0]):
        own = rows[numbers[i]]
        for d in range(x.shape[1]):
            out[i, d] = x[i, d] - own[d]
    return out


@njit(nogil=True, cache=True)
def _squared_distances(x, y):
    """Squared distance of each two rows, summed in one fixed order."""
    out = np.empty(x.shape[0], np.float32)
    for i in range(x.shape[0]):
        total = 0.0
        for d in range(x.shape[1]):
            apart = np.float64(x[i, d] - y[i, d])
            total += apart * apart
        out[i] = total
    return out


@njit(nogil=True, cache=True)
def _apart(steps, others):
    """Squared distances of rows in steps."""
    out = np.empty(steps.shape[0], np.float32)
    for i in range(steps.shape[0]):
        total = 0
        for d in range(steps.shape[1]):
            apart = np.int64(steps[i, d]) - others[i, d]
            total += apart * apart
        out[i] = total
    return out


class Encoder:
    """Assigns rows to lists and encodes them.

    Parameters
    ----------
    axes
        Leading axes of the residuals.
    radius, probes
        A row probes the lists within this margin, `probes` at the most.
    """

    def __init__(self, trained: TrainedIndex, axes: Axes, radius: float, probes: int) -> None:
        self.trained, self.axes, self.radius, self.probes = trained, axes, radius, probes
        self._book = axes.book(trained.codec)
        self._centroids = axes.project(trained.centroids)

    def block(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Home, codes, quantisation errors and probed lists of a block.

        Parameters
        ----------
        x
            float32[n, dim].

        Returns
        -------
        home int32[n], codes uint8[n, size], errors float32[n, 2] (squared steps on the leading
        axes, and as a whole), row in block and list of each probe.
        """
        trained, axes = self.trained, self.axes
        home, row, probed = trained.assigner.probed(x, self.probes, self.radius)
        residuals = _less(x, trained.centroids, home)
        codes = trained.codec.encode(residuals)
        whole = _squared_distances(residuals, trained.codec.decode(codes))
        short = axes.coordinates(_less(axes.project(x), self._centroids, home))
        near = axes.decode(trained.codec, self._book, codes)
        errors = np.stack([_apart(short.steps, near.steps), whole], axis=1)
        return home, codes, errors, row, probed


def by_list(lists: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stable order of entries by list, and int64[count + 1] offsets of the lists."""
    # Numbers of 16 bits are sorted by radix, four times as fast.
    narrow = lists.astype(np.uint16) if count <= 1 << 16 else lists
    order = np.argsort(narrow, kind="stable")
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(lists, minlength=count), out=offsets[1:])
    return order, offsets


def encode_shard(encoder: Encoder, source: Path, out: Path, workers: int = 0) -> dict:
    """Encode one shard of SNIP features into an index shard.

    Parameters
    ----------
    source
        float16[n, dim].

    Returns
    -------
    Facts: rows, probes a row, mean squared quantisation error.
    """
    features, trained = RowFile(source), encoder.trained

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(features), BLOCK):
            yield features.block(start, start + BLOCK)

    def work(block: np.ndarray) -> tuple:
        return encoder.block(as_float32(block))

    parts = []
    with task(f"encode {source.stem}", len(features)) as progress:
        for number, (home, codes, errors, row, probed) in enumerate(
            ordered_map(work, blocks(), workers)
        ):
            shift = number * BLOCK
            parts.append((home, codes, errors, (row + shift).astype(np.uint32), probed))
            progress.advance(len(home))
    if not parts:
        parts.append(work(np.empty((0, trained.dim), np.float32)))
    home, codes, errors, row, probed = (np.concatenate(p) for p in zip(*parts, strict=True))
    order, offsets = by_list(home, trained.lists)
    probe_order, probe_offsets = by_list(probed, trained.lists)
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        save_npy(folder / "list_offsets.npy", offsets)
        save_npy(folder / "codes.npy", codes[order])
        save_npy(folder / "rows.npy", order.astype(np.uint32))
        save_npy(folder / "probe_offsets.npy", probe_offsets)
        save_npy(folder / "probe_rows.npy", row[probe_order].astype(np.uint32))
        save_npy(folder / "errors.npy", errors[row[probe_order]])
    rows = len(home)
    return {
        "rows": rows,
        "probes_per_row": len(row) / max(rows, 1),
        "mean_error": float(errors[:, 1].mean()) if rows else 0.0,
    }
