"""Hashes of rows are those of the library."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine.kernels.row_hashes import SHORT, STRIPE, STRIPES, row_hashes

BLOCK = STRIPE * STRIPES


def library(rows: np.ndarray) -> list[int]:
    return [xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows]


@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(0, 3), st.integers(0, 2**32))
def test_any_number_of_bytes(width: int, count: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (count, width), np.uint8)
    assert row_hashes(rows).tolist() == library(rows)


@pytest.mark.parametrize("edge", [SHORT, BLOCK, BLOCK + STRIPE, 2 * BLOCK, 768 * 2])
def test_around_the_edges_of_stripes_and_blocks(edge: int) -> None:
    for width in range(edge - 2, edge + 3):
        rows = np.random.default_rng(width).integers(0, 256, (3, width), np.uint8)
        assert row_hashes(rows).tolist() == library(rows)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rows_of_numbers(kind: type) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 768)).astype(kind)
    assert row_hashes(rows[1:]).tolist() == library(rows)[1:]
