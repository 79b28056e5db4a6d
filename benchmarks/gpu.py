"""Compression on a GPU beside the CPU, and the matrix products that a join would have there.

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
from snip_assets.engine.compress import compress_shard
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings

SIZES = (768, 1024, 128)
QUERIES, LISTED, LISTS = 4096, 8192, 64
SLACK = 0.1


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


@torch.inference_mode()
def products(device: str, repeats: int) -> dict[str, Any]:
    """Pairs a second of queries x rows of a list and a threshold: the core of a join, not a join.

    128 numbers a vector, float32; the rows of a list are in the device's memory, hits come back.
    """
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(QUERIES, 128, generator=generator), dim=1)
    listed = torch.nn.functional.normalize(torch.randn(LISTED, 128, generator=generator), dim=1)
    queries, listed = queries.to(device), listed.to(device)

    def work() -> None:
        for _ in range(LISTS):
            (2 - 2 * queries @ listed.T <= SLACK).nonzero().cpu()

    seconds = _best(work, repeats)
    pairs = QUERIES * LISTED * LISTS / seconds
    return {"work": "products of a join", "device": device, "pairs/s": round(pairs)}


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
    rows += [products(device, arguments.repeats) for device in ("cpu", "cuda")]
    table(f"{machine['gpu']} beside {machine['processor']}, {machine['cores']} cores", rows)
    print(f"largest difference between the features of both: {difference:.2g}")
    write("gpu", {"machine": machine, "results": rows, "largest_difference": difference})


if __name__ == "__main__":
    main()
