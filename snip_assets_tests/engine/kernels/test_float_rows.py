"""Rows of floats: the kernels against NumPy, from the smallest to the largest numbers."""

import numpy as np
import pytest

from snip_assets.engine.kernels.float_rows import lengths, readable, unit_whole, whole
from snip_assets.engine.kernels.whole_rows import STEPS, whole_rows

pytestmark = pytest.mark.skipif(
    not readable(np.zeros((1, 16), np.float16)), reason="this processor does not convert them"
)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dim", [16, 48, 768])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unit_rows_are_those_of_numpy(scale, dim, dtype):
    rows = (np.random.default_rng(dim).normal(size=(37, dim)) * scale).astype(dtype)
    rows[3, 0] = 1e-7
    wide = rows.astype(np.float64)
    true = np.linalg.norm(wide, axis=1, keepdims=True)
    there = true[:, 0] > 0
    steps, found = unit_whole(rows, 32_767.0)
    np.testing.assert_allclose(found, true[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(lengths(rows), found)
    unit = wide[there] / true[there]
    off = np.abs(steps[: len(rows), :dim][there] - unit * 32_767)
    assert off.max() <= 0.51
    assert not steps[len(rows) :].any() and not steps[:, dim:].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_rounded_as_whole_rows_are(dtype):
    rows = np.random.default_rng(0).normal(size=(37, 48)).astype(dtype)
    np.testing.assert_array_equal(whole(rows, STEPS), whole_rows(rows.astype(np.float32)))


def test_what_is_not_finite_is_seen():
    rows = np.ones((4, 32), np.float16)
    rows[1], rows[2, 7], rows[3, 31] = 0, np.nan, -np.inf
    found = lengths(rows)
    assert found[1] == 0 and np.isnan(found[2]) and np.isinf(found[3])
    np.testing.assert_array_equal(unit_whole(rows, 100.0)[1], found)


def test_other_rows_are_left_to_others():
    assert not readable(np.zeros((2, 17), np.float16))
    assert not readable(np.zeros((2, 16), np.float64))
    assert not readable(np.zeros((32, 16), np.float16)[::2])
