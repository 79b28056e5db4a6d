"""Merging the index shards of a data set of LAION's shape: 2,314 parts of 65,536 lists.

    python benchmarks/merge.py [--parts 2314] [--lists 65536] [--rows 2000]

The parts are small (so that the lists, not the bytes, decide); row ids begin at 2^32. Prints a
table and writes benchmarks/results/merge.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from common import cores, peak_gb, table, write

from snip_assets.engine import index


def make_parts(
    folder: Path, parts: int, lists: int, rows: int, first: int
) -> list[index.ListFolder]:
    random = np.random.default_rng(0)
    found = []
    for number in range(parts):
        part = folder / f"part-{number}"
        part.mkdir(parents=True)
        home = np.sort(random.integers(0, lists, rows))
        offsets = np.searchsorted(home, np.arange(lists + 1)).astype(np.int64)
        np.save(part / "list_offsets.npy", offsets)
        np.save(part / "codes.npy", random.integers(0, 256, (rows, 8), np.uint8))
        np.save(part / "rows.npy", np.arange(rows, dtype=np.uint32))
        found.append(index.ListFolder(part, first + number * rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=2314)
    parser.add_argument("--lists", type=int, default=65_536)
    parser.add_argument("--rows", type=int, default=2000, help="Of a part.")
    options = parser.parse_args()
    first, results = 1 << 32, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = make_parts(folder, options.parts, options.lists, options.rows, first)
        for memory in (index.MERGE_BYTES, index.MERGE_BYTES // 64):
            out = folder / "merged"
            started = time.perf_counter()
            facts = index.merge(parts, out, first + options.parts * options.rows, memory)
            seconds = time.perf_counter() - started
            results.append(
                {
                    "parts": options.parts,
                    "lists": options.lists,
                    "rows": facts["rows"],
                    "slices": -(-facts["bytes"] // memory),
                    "seconds": seconds,
                    "lists of parts/s": options.parts * options.lists / seconds,
                    "peak GiB": peak_gb(),
                }
            )
            shutil.rmtree(out)
    table("Merge", results)
    write("merge", {"machine": cores(), "runs": results})


if __name__ == "__main__":
    main()
