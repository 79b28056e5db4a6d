"""GELU by a polynomial against float64, and what the next layer gets of it."""

import numpy as np
import pytest
import torch
from torch import nn

from snip_assets.engine.kernels.gelu import EDGE, gelu_unit_whole
from snip_assets.engine.kernels.whole_linear import STEPS, WholeLinear


def _exact(x: np.ndarray) -> np.ndarray:
    return nn.functional.gelu(torch.from_numpy(x).double()).numpy()


def test_as_close_to_float64_as_float32_allows() -> None:
    edges = np.float32(EDGE) * np.array([1 - 1e-6, 1, 1 + 1e-6, -1, -1 - 1e-6], np.float32)
    ends = np.array([0, -0.0, 1e-38, -1e-30, 60, -60, 1e4, -1e4], np.float32)
    x = np.concatenate([np.linspace(-9, 9, 3_000_003, dtype=np.float32), edges, ends])
    rows = x.reshape(-1, 16).copy()
    _, lengths = gelu_unit_whole(rows, STEPS)
    exact = _exact(x).reshape(rows.shape)
    off = np.abs(rows - exact) / np.maximum(1, np.abs(x).reshape(rows.shape))
    assert off.max() <= 2.5e-7
    np.testing.assert_allclose(lengths, np.linalg.norm(exact, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [16, 48, 512, 50])
def test_a_layer_after_gelu_is_the_layer_of_its_gelu(width: int) -> None:
    torch.manual_seed(width)
    layer, x = nn.Linear(width, 33), torch.randn(70, width)
    # No length, hardly any, and all of it in one number.
    x[3], x[4] = 0, 1e-9
    x[5] = -80
    x[5, 0] = 3
    found = WholeLinear(layer).of_gelu(x.numpy().copy())
    gelu = _exact(x.numpy())
    expected = layer.double()(torch.from_numpy(gelu)).detach().numpy()
    length = np.linalg.norm(gelu, axis=1, keepdims=True)
    # A step of each number of both sides.
    most = length * (width**0.5 * 2 / STEPS) + 1e-5
    assert found.shape == (70, 33) and (np.abs(found - expected) <= most).all()
