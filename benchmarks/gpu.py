"""Compression and join on a GPU beside the CPU.

python -m benchmarks.gpu --rows 1000000

Where torch sees no CUDA device it says so, measures nothing and exits with 3.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import cores, table, write
from snip_assets.engine import threads
from snip_assets.engine.compress import compress_shard
from snip_assets.engine.join import scanned, scanned_on
from snip_assets.engine.kernels.byte_products import Short, panels, queries
from snip_assets.engine.kernels.whole_rows import Decoded
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings

SIZES = (768, 512, 128)
# A multiple of any number of queries that the kernel takes at once.
QUERIES, LISTED, LISTS, WIDTH = 4224, 8192, 128, 64
DEVICES = ("cpu", "cuda")


def compression(rows: int, folder: Path, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """Rows a second of `compress_shard`, and the largest difference of the outputs."""
    net = SnipNet(SIZES).eval().requires_grad_(False)
    source = folder / "in.npy"
    x = np.random.default_rng(0).standard_normal((rows, SIZES[0]), np.float32)
    np.save(source, x.astype(np.float16))
    outs, found = [], []
    for device, workers in product(DEVICES, (1, threads.count())):
        out = folder / f"{device}-{workers}.npy"
        settings = Settings(device=device, workers=workers)
        seconds = _best(partial(compress_shard, net, source, out, settings), repeats)
        outs.append(np.load(out).astype(np.float32))
        found.append(_row("compress", device, workers, "rows/s", rows / seconds))
    return found, max(float(np.abs(out - outs[0]).max()) for out in outs[1:])


def joined(device: str, workers: int, repeats: int) -> tuple[dict[str, Any], int]:
    """Pairs a second of the join's own comparison of queries with lists, and candidates found."""
    random = np.random.default_rng(0)
    short, listed = (
        Short(
            random.integers(-30, 31, (count, WIDTH), np.int8),
            random.integers(-6000, -4000, count).astype(np.float32),
            WIDTH,
        )
        for count in (QUERIES, LISTED)
    )
    # One pair in twenty thousand passes.
    bound = np.full(QUERIES, 4.0 * 17.6**2 * WIDTH**0.5 - 5000, np.float32)
    stop, error = np.full(QUERIES, LISTED), np.zeros(QUERIES, np.int64)
    x, whole = np.zeros((QUERIES, 128), np.int16), np.zeros((LISTED, 128), np.int16)
    operands = (x, Decoded.all(whole), error, 0)
    found = 0

    def one(_: int) -> int:
        if device == "cpu":
            hits = scanned(panels(listed), queries(short, bound), stop, operands)
        else:
            hits = scanned_on(torch.device(device), listed, short, bound, stop, operands)
        return sum(len(h.query) for h in hits)

    def work() -> None:
        nonlocal found
        found = sum(threads.ordered_map(one, range(LISTS), workers))

    seconds = _best(work, repeats)
    return _row("join", device, workers, "pairs/s", QUERIES * LISTED * LISTS / seconds), found


def _row(work: str, device: str, workers: int, unit: str, rate: float) -> dict[str, Any]:
    return {"work": work, "device": device, "threads": workers, unit: round(rate)}


def _best(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    work()  # The first call allocates and compiles.
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"No CUDA device: torch {torch.__version__} sees none here. Nothing was measured.")
        sys.exit(3)
    machine = {**cores(), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        rows, difference = compression(arguments.rows, Path(folder), arguments.repeats)
    for device, workers in product(DEVICES, (1, threads.count())):
        row, candidates = joined(device, workers, arguments.repeats)
        rows.append({**row, "candidates": candidates})
    if len({row["candidates"] for row in rows if "candidates" in row}) > 1:
        sys.exit(f"candidates differ: {rows}")
    table(f"{machine['gpu']} beside {machine['processor']}, {machine['cores']} cores", rows)
    print(f"largest difference between the features of both: {difference:.2g}")
    write("gpu", {"machine": machine, "results": rows, "largest_difference": difference})


if __name__ == "__main__":
    main()
