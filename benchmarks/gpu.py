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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import cores, table, write
from snip_assets.engine.byte_kernels import Short
from snip_assets.engine.compress import compress_shard
from snip_assets.engine.join import scanned, scanned_on
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings
from snip_assets.engine.whole_rows import Decoded

SIZES = (768, 512, 128)
# A multiple of any number of queries that the kernel takes at once.
QUERIES, LISTED, LISTS, WIDTH = 4224, 8192, 64, 32


def compression(rows: int, folder: Path, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """Rows a second of `compress_shard` on both, and the largest difference of their outputs."""
    net = SnipNet(SIZES).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    source = folder / "in.npy"
    np.save(source, rng.standard_normal((rows, SIZES[0]), np.float32).astype("f2"))
    outs = {name: folder / f"{name}.npy" for name in ("cpu", "cuda")}
    found = []
    for device, out in outs.items():
        settings = Settings(device=device)
        seconds = _best(lambda out=out, s=settings: compress_shard(net, source, out, s), repeats)
        found.append({"work": "compress", "device": device, "rows/s": round(rows / seconds)})
    one, other = (np.load(out).astype(np.float32) for out in outs.values())
    return found, float(np.abs(one - other).max())


def joined(device: str, repeats: int) -> tuple[dict[str, Any], int]:
    """Pairs a second of the join's own comparison of queries with a list, and candidates found."""
    random = np.random.default_rng(0)
    short, listed = (
        Short(
            random.integers(-60, 60, (count, WIDTH), np.int8),
            random.integers(-60, 60, count).astype(np.float32),
            WIDTH,
        )
        for count in (QUERIES, LISTED)
    )
    # About one pair in ten thousand passes, as in a data set.
    bound = np.full(QUERIES, 3.7 * 35**2 * WIDTH**0.5, np.float32)
    stop, error = np.full(QUERIES, LISTED), np.zeros(QUERIES, np.int64)
    x, whole = np.zeros((QUERIES, 128), np.int16), np.zeros((LISTED, 128), np.int16)
    operands = (x, Decoded.all(whole), error, 0)
    found = 0

    def work() -> None:
        nonlocal found
        found = 0
        for _ in range(LISTS):
            if device == "cpu":
                hits = scanned(listed, short, bound, stop, operands)
            else:
                hits = scanned_on(torch.device(device), listed, short, bound, stop, operands)
            found += sum(len(h.query) for h in hits)

    seconds = _best(work, repeats)
    pairs = QUERIES * LISTED * LISTS / seconds
    return {"work": "join, one thread", "device": device, "pairs/s": round(pairs)}, found


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
    both = [joined(device, arguments.repeats) for device in ("cpu", "cuda")]
    rows += [row for row, _ in both]
    if both[0][1] != both[1][1]:
        sys.exit(f"candidates differ: {both[0][1]} and {both[1][1]}")
    table(f"{machine['gpu']} beside {machine['processor']}, {machine['cores']} cores", rows)
    print(f"largest difference between the features of both: {difference:.2g}")
    write("gpu", {"machine": machine, "results": rows, "largest_difference": difference})


if __name__ == "__main__":
    main()
