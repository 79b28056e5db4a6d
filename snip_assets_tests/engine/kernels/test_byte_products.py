"""The product of the join against NumPy, at the edges of what 8 and 16 bits hold."""

import numpy as np
import pytest
from numba import njit

from snip_assets.engine.axes import AXIS_STEPS, Axes
from snip_assets.engine.kernels.byte_products import BALL, TOP, Short, compare, panels, queries
from snip_assets.engine.kernels.registers import AT_ONCE
from snip_assets.engine.kernels.vectors import WIDTH
from snip_assets.engine.kernels.whole_rows import STEPS


@njit
def masks_of(listed, starts, own, floor, out):
    count = own.shape[0]
    masks, numbers = np.empty(count, np.uint32), np.empty(count, np.int32)
    for panel in range(listed.shape[0]):
        for first in range(0, count, AT_ONCE):
            # From each block on, all that follow.
            out[first:, panel] = 0
            some = (listed, starts, panel, own, first, count, floor, masks, numbers)
            for k in range(compare(*some)):
                out[numbers[k], panel] = masks[k]


def passed(rows: Short, short: Short, bound: np.ndarray) -> np.ndarray:
    """bool[q, n], by the kernel."""
    return every_mask(rows, short, bound)[: len(short.half), : len(rows.half)]


def every_mask(rows: Short, short: Short, bound: np.ndarray) -> np.ndarray:
    """The same, with what fills up the last block of queries and the last panel."""
    listed, starts = panels(rows)
    own, floor = queries(short, bound)
    out = np.zeros((len(own), len(listed)), np.uint32)
    masks_of(listed, starts, own, floor, out)
    bits = out[:, :, None] >> np.arange(32, dtype=np.uint32) & 1
    return bits.reshape(len(own), -1).astype(bool)


def coordinates(x: np.ndarray) -> Short:
    """Whole coordinates of rows in steps, however far out these are."""
    axes = Axes(np.eye(x.shape[1], dtype=np.float32), STEPS * AXIS_STEPS)
    # In as many columns as `Axes.project` gives.
    wide = np.zeros((len(x), -(-x.shape[1] // WIDTH) * WIDTH), np.float32)
    wide[:, : x.shape[1]] = x
    return axes.coordinates(wide)


@pytest.mark.parametrize("width", [1, 2, 3, 16, 24, 48, 64])
@pytest.mark.parametrize("spread", [3, 40, 400])
def test_product_is_exact(width, spread):
    random = np.random.default_rng(width)
    rows = coordinates(random.normal(size=(99, width)) * spread)
    short = coordinates(random.normal(size=(37, width)) * spread)
    # The nearest and the farthest that there can be.
    short.steps[:9], short.steps[9:18] = rows.steps[:9], -rows.steps[:9]
    score = short.steps.astype(int) @ rows.steps.astype(int).T + rows.half.astype(int)
    for bound in (score.max(1), np.median(score, axis=1), score.min(1), score.min(1) - 0.5):
        assert (passed(rows, short, bound.astype(np.float32)) == (score >= bound[:, None])).all()
    none = np.full(len(short.half), 1e9, np.float32)
    assert not passed(rows, short, none).any()
    assert passed(rows, short, -none).all()


def test_what_fills_up_a_block_of_queries_finds_nothing():
    width, rows = 48, 64
    low = Short(np.full((rows, width), -20, np.int8), np.full(rows, -9600, np.float32), width)
    one = Short(np.zeros((1, width), np.int8), np.zeros(1, np.float32), width)
    assert not every_mask(low, one, np.full(1, 1e6, np.float32)).any()


def test_coordinates_stay_small_and_bring_nothing_apart():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 24)) * np.geomspace(1, 100, 300)[:, None]
    whole = coordinates(x).steps.astype(int)
    assert np.abs(whole).max() <= TOP
    assert np.linalg.norm(whole, axis=1).max() <= BALL + 0.01
    before = np.linalg.norm(x[:, None] - x, axis=2)
    after = np.linalg.norm(whole[:, None] - whole, axis=2)
    # A step for rounding, and one for shortening, on each axis.
    assert (after <= before + 2 * 24**0.5).all()
