"""Index shards: the rows of one shard sorted by inverted list, with their codes.

A folder a shard, no copy of the centroids:

- `list_offsets.npy` int64[lists + 1], `codes.npy` uint8[n, code size], `rows.npy` uint32[n] (row
  in shard, ascending inside a list): what goes into the index;
- `probe_offsets.npy` int64[lists + 1], `probe_rows.npy` uint32[m]: the rows that probe each list,
  `errors.npy` float32[n, 2]: squared quantisation error ADC(i, i) of each row on the leading
  axes of the residuals and as a whole: what the join needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numba import njit

from .assign import BLOCK
from .files import atomic_path, open_npy, save_npy
from .join import project
from .progress import task
from .threads import ordered_map
from .trained import TrainedIndex


@njit(nogil=True, cache=True)
def squared_norms(x):
    """Squared norm of each row, summed in one fixed order."""
    out = np.empty(x.shape[0], np.float32)
    for i in range(x.shape[0]):
        total = 0.0
        for d in range(x.shape[1]):
            total += np.float64(x[i, d]) * np.float64(x[i, d])
        out[i] = total
    return out


def encode_block(
    trained: TrainedIndex, x: np.ndarray, axes: np.ndarray, radius: float, probes: int
) -> tuple[np.ndarray, ...]:
    """Home, codes, quantisation errors and probed lists of a block.

    Returns
    -------
    home int32[n], codes uint8[n, size], errors float32[n, 2], row in block and list of each probe.
    """
    lists, distance = trained.assigner.nearest(x, probes)
    margin = trained.assigner.margins(lists, distance)
    home = lists[:, 0]
    residuals = x - trained.centroids[home]
    codes = trained.codec.encode(residuals)
    lost = residuals - trained.codec.decode(codes)
    errors = np.stack([squared_norms(project(lost, axes)), squared_norms(lost)], axis=1)
    row, rank = np.nonzero(margin <= radius)
    return home, codes, errors, row, lists[row, rank]


def by_list(lists: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stable order of entries by list, and int64[count + 1] offsets of the lists."""
    order = np.argsort(lists, kind="stable")
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(lists, minlength=count), out=offsets[1:])
    return order, offsets


def encode_shard(
    trained: TrainedIndex,
    source: Path,
    out: Path,
    axes: np.ndarray,
    radius: float,
    probes: int,
    workers: int = 0,
) -> dict:
    """Encode one shard of SNIP features into an index shard.

    Parameters
    ----------
    source
        float16[n, dim].
    axes
        float32[dim, width]: leading axes of the residuals.
    radius, probes
        A row probes the lists within this margin, `probes` at the most.

    Returns
    -------
    Facts: rows, probes a row, mean squared quantisation error.
    """
    features = open_npy(source)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(features), BLOCK):
            yield features[start : start + BLOCK]

    def work(block: np.ndarray) -> tuple:
        return encode_block(trained, block.astype(np.float32), axes, radius, probes)

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
        save_npy(folder / "errors.npy", errors)
    rows = len(home)
    return {
        "rows": rows,
        "probes_per_row": len(row) / max(rows, 1),
        "mean_error": float(errors[:, 1].mean()) if rows else 0.0,
    }
