"""Compress features with the SNIP net: streamed by fixed blocks, one thread a block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import nn

from . import progress, threads
from .errors import BadInputError
from .kernels import float_rows
from .kernels.registers import FASTER
from .kernels.whole_linear import STEPS, WholeLinear
from .model import SnipNet
from .settings import Settings
from .storage.files import NpyWriter
from .storage.row_file import RowFile

BLOCK_ROWS = 4096
# So that the rows of a part (1.5 MB at 768 numbers) and their hidden numbers stay near the core.
PART_ROWS = 512
Whole = dict[nn.Module, WholeLinear]


def device_of(settings: Settings) -> torch.device:
    """The processor that the settings ask for; `auto` takes CUDA where there is one.

    Raises
    ------
    BadInputError
        CUDA is asked for and absent, or the name is unknown.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInputError("device cuda: this torch sees no CUDA device; use device cpu or auto.")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise BadInputError(f"device {name!r}: expected auto, cpu or cuda.")
    return torch.device(name)


def compress(net: SnipNet, block: np.ndarray, settings: Settings) -> np.ndarray:
    """Compress one block of rows.

    Parameters
    ----------
    block
        float[n, D], finite, no zero rows.

    Returns
    -------
    ndarray
        float16[n, dim], unit length up to rounding.

    Raises
    ------
    BadInputError
        D is not the net's, or a row is zero, NaN or infinite.
    """
    _check_dim(net, block.shape[1], "these rows")
    device = device_of(settings)
    net, whole = net.to(device), _whole_layers(net, device)
    # `_block` works on its rows in place.
    blocks = [np.array(block[s : s + BLOCK_ROWS]) for s in range(0, len(block), BLOCK_ROWS)]
    out = [_block(net, whole, part, device, "", n * BLOCK_ROWS) for n, part in enumerate(blocks)]
    return np.concatenate(out) if out else np.empty((0, net.sizes[-1]), np.float16)


def compress_shard(net: SnipNet, source: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Compress the features of one shard into a file.

    Blocks of 4,096 rows are computed by one thread each, so the result does not depend on the
    number of workers. Memory: about four blocks a worker, 60 MB at 768 numbers a row and a
    hidden width of 1,024 (the default is 512); twice that for shards that overlap.

    Parameters
    ----------
    source
        .npy, float[n, D].
    out
        .npy, float16[n, dim], written atomically.

    Returns
    -------
    dict
        rows, dim, seconds, rows_per_second.

    Raises
    ------
    BadInputError
        The file is damaged, has another dimension than the net, or a row is zero, NaN or
        infinite; the message names the row.
    """
    started = time.perf_counter()
    rows = RowFile(source)
    if len(rows.shape) != 2:
        raise BadInputError(f"{source}: shape {rows.shape}; expected rows x dimension.")
    _check_dim(net, rows.shape[1], str(source))
    device = device_of(settings)
    net, whole = net.to(device), _whole_layers(net, device)

    def one(start: int) -> np.ndarray:
        return _block(
            net, whole, rows.block(start, start + BLOCK_ROWS), device, f"{source}: ", start
        )

    starts: Iterator[int] = iter(range(0, len(rows), BLOCK_ROWS))
    with (
        NpyWriter(out, (len(rows), net.sizes[-1]), np.float16) as writer,
        progress.task(f"compress {source.name}", len(rows)) as bar,
    ):
        for block in threads.ordered_map(one, starts, settings.workers):
            writer.append(block)
            bar.advance(len(block))
    seconds = time.perf_counter() - started
    return {
        "rows": len(rows),
        "dim": net.sizes[-1],
        "seconds": round(seconds, 3),
        "rows_per_second": round(len(rows) / max(seconds, 1e-9)),
    }


def _whole_layers(net: SnipNet, device: torch.device) -> Whole:
    """The layers in whole numbers where that is faster; else none."""
    fits = device.type == "cpu" and FASTER
    return {layer: WholeLinear(layer) for layer in net.linears} if fits else {}


def _check_dim(net: SnipNet, dim: int, name: str) -> None:
    if dim != net.sizes[0]:
        raise BadInputError(
            f"{name}: {dim} numbers a row, but the net takes {net.sizes[0]}; use the net that was "
            "trained on features of this model."
        )


@torch.inference_mode()
def _block(
    net: SnipNet,
    whole: Whole,
    block: np.ndarray,
    device: torch.device,
    name: str,
    first: int,
) -> np.ndarray:
    size = PART_ROWS if device.type == "cpu" else max(1, len(block))
    out = np.empty((len(block), net.sizes[-1]), np.float16)
    for start in range(0, len(block), size):
        part, where = block[start : start + size], (name, first + start)
        if whole:
            hidden = torch.from_numpy(_whole_net(net, whole, part, where))
        else:
            hidden = _unit(part, device, where)
            for layer in net.layers:
                hidden = _apply(layer, hidden)
        out[start : start + size] = _normalised(hidden).half().cpu().numpy()
    return out


def _whole_net(net: SnipNet, whole: Whole, part: np.ndarray, where: tuple[str, int]) -> np.ndarray:
    """All layers, those with weights in whole numbers."""
    first, *others = net.layers
    hidden = _first_layer(whole[first], part, where)
    for activation, layer in zip(others[::2], others[1::2], strict=True):
        if isinstance(activation, nn.GELU):
            hidden = whole[layer].of_gelu(hidden)
        else:
            hidden = whole[layer](np.maximum(hidden, 0, out=hidden))
    return hidden


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    """Of unit length; on the processor, in place."""
    if rows.device.type != "cpu":
        return nn.functional.normalize(rows, dim=1)
    _normalise(rows.numpy())
    return rows


@njit(nogil=True, cache=True, fastmath={"nsz", "reassoc", "contract"})
def _normalise(rows):
    for i in range(rows.shape[0]):
        total = np.float32(0.0)
        for d in range(rows.shape[1]):
            total += rows[i, d] * rows[i, d]
        length = max(np.sqrt(total), np.float32(1e-12))
        for d in range(rows.shape[1]):
            rows[i, d] /= length


def _first_layer(whole: WholeLinear, part: np.ndarray, where: tuple[str, int]) -> np.ndarray:
    if not float_rows.readable(part):
        return whole(_unit(part, torch.device("cpu"), where).numpy())
    rows, lengths = float_rows.unit_whole(part, STEPS)
    _check_lengths(lengths, where)
    return whole.of_whole(rows, len(part))


def _unit(part: np.ndarray, device: torch.device, where: tuple[str, int]) -> torch.Tensor:
    """Rows in float32, of unit length; float32 ones are overwritten."""
    rows = torch.from_numpy(part).to(device).float()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    _check_lengths(lengths.squeeze(1).cpu().numpy(), where)
    return rows.div_(lengths)


def _check_lengths(lengths: np.ndarray, where: tuple[str, int]) -> None:
    """`where`: the file, and the row in shard of the first."""
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        what = "is all zeros" if lengths[row] == 0 else "holds NaN or infinity"
        raise BadInputError(
            f"{where[0]}row {where[1] + row} {what}; compute its feature again, or take the row "
            "out of the features and the metadata."
        )


def _apply(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """One layer; an activation overwrites its input, which is always a product of our own."""
    if isinstance(layer, nn.GELU):
        return torch.ops.aten.gelu_(hidden)
    return hidden.relu_() if isinstance(layer, nn.ReLU) else layer(hidden)
