"""Rows a second of `compress_shard` against the bare matrix products, in one run.

python benchmarks/compress.py --rows 200000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from snip_assets.engine.compress import compress_shard
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings

SIZES = (768, 1024, 128)
RESULTS = Path(__file__).parent / "results" / "compress.json"


@torch.inference_mode()
def products(rows: int, batch: int) -> float:
    """Seconds for the two matrix products alone, all cores, operands in memory as float32."""
    data = torch.randn(batch, SIZES[0])
    first, second = torch.randn(SIZES[0], SIZES[1]), torch.randn(SIZES[1], SIZES[2])
    hidden, short = torch.empty(batch, SIZES[1]), torch.empty(batch, SIZES[2])
    started = time.perf_counter()
    for _ in range(rows // batch):
        torch.mm(data, first, out=hidden)
        torch.mm(hidden, second, out=short)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    net = SnipNet(SIZES).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(source, rng.standard_normal((arguments.rows, SIZES[0]), np.float32).astype("f2"))
        # In turns, so that other work on the machine hits both alike.
        for _ in range(arguments.repeats):
            bare.append(min(products(arguments.rows, batch) for batch in (512, 4096)))
            started = time.perf_counter()
            compress_shard(net, source, out, Settings(device="cpu"))
            ours.append(time.perf_counter() - started)
    result = {
        "rows": arguments.rows,
        "sizes": SIZES,
        "threads": torch.get_num_threads(),
        "products_rows_per_second": round(arguments.rows / min(bare)),
        "compress_shard_rows_per_second": round(arguments.rows / min(ours)),
        "ratio": round(min(bare) / min(ours), 3),
    }
    print(f"{'bare matrix products':28}{result['products_rows_per_second']:>12,} rows/s")
    print(f"{'compress_shard, float16':28}{result['compress_shard_rows_per_second']:>12,} rows/s")
    print(f"{'ratio (goal 0.80)':28}{result['ratio']:>12.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
