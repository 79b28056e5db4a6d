"""Pair files to test with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets.engine.pair_files import SCHEMA


def write_pairs(path: Path, pairs, row_group: int = 1 << 20) -> Path:
    """Write (row, earlier_row, distance) tuples or three arrays as a file of pairs."""
    columns = pairs if isinstance(pairs, tuple) else tuple(zip(*pairs, strict=True)) or ([],) * 3
    arrays = [
        pa.array(np.asarray(column).astype(kind))
        for column, kind in zip(columns, (np.uint64, np.uint64, np.float32), strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), path, row_group_size=row_group)
    return path
