"""The layer in whole numbers against float64."""

import numpy as np
import pytest
import torch
from torch import nn

from snip_assets.engine.kernels.whole_linear import LONGEST, STEPS, WholeLinear
from snip_assets.engine.kernels.whole_rows import whole_rows


@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(1, 1, 1), (7, 33, 50), (768, 512, 100)])
@pytest.mark.parametrize("bias", [False, True])
def test_as_float64_but_for_the_steps(inputs: int, outputs: int, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight *= torch.logspace(-6, 6, outputs)[:, None]
    layer.weight[-1] = 0
    x = nn.functional.normalize(torch.randn(rows, inputs), dim=1)
    # Along one axis, and along the weights themselves: the largest sums there can be.
    x[0] = torch.eye(inputs)[0]
    x[-1] = nn.functional.normalize(layer.weight[0], dim=0)
    whole, step = WholeLinear(layer), inputs**0.5 / 2 * (1 / STEPS + 1 / min(STEPS, LONGEST))
    unit = whole.of_whole(whole_rows(x.numpy(), STEPS, STEPS), rows)
    length = torch.logspace(-9, 9, rows)[:, None]
    length[rows // 2 :: 2] = 0
    any_length = whole((x * length).numpy())
    exact, offset = layer.double(), layer.bias.numpy() if bias else np.zeros(outputs)
    most = exact.weight.norm(dim=1).numpy() * (step + 2e-6) * 1.01
    for found, times in ((unit, torch.ones(rows, 1)), (any_length, length)):
        assert found.shape == (rows, outputs) and found.dtype == np.float32
        expected = exact((x * times).double()).numpy()
        error = np.abs(found - expected)
        assert (error <= times.numpy() * most + 1e-6 * np.abs(offset) + 1e-30).all()
