"""The loss of a batch in one pass against that of torch in float64, and its gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import njit
from torch import nn

from snip_assets.engine.kernels.fused_loss import Terms, exponentials, fits, fused_loss
from snip_assets.engine.objective import Codes, near_loss, neighbour_loss, neighbour_target

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not fits(32, CPU), reason="the loss is that of torch here")


def _rows(count: int, dim: int) -> torch.Tensor:
    """Unit rows: copies, near ones, opposite ones and others."""
    rows = torch.randn(count, dim, dtype=torch.float64)
    rows[1], rows[2], rows[3] = rows[0], rows[0] + 0.02 * rows[5], -rows[0]
    rows[6 : count // 2] = rows[5] + 0.1 * rows[6 : count // 2]
    return nn.functional.normalize(rows, dim=1)


def _exact(
    images: torch.Tensor, short: torch.Tensor, codes: Codes | None, terms: Terms
) -> torch.Tensor:
    raw, similar = images @ images.T, short @ short.T
    loss = neighbour_loss(neighbour_target(raw, terms.temperature), similar, terms.temperature)
    if terms.near_weight:
        loss = loss + terms.near_weight * near_loss(raw, similar, terms.near_distance)
    if codes is not None:
        wide = neighbour_target(raw, terms.code_temperature)
        by_codes = codes.loss(wide, short, terms.code_temperature, terms.commit_weight)
        loss = loss + terms.code_weight * by_codes
    return loss


class _Fixed(Codes):
    """Codes that decode to given rows."""

    def __init__(self, fixed: torch.Tensor) -> None:
        super().__init__(1, 1)
        self.fixed = fixed

    def decode(self, short: torch.Tensor) -> torch.Tensor:
        return self.fixed.to(short.dtype)


@pytest.mark.parametrize("count", [32, 96, 288])
@pytest.mark.parametrize("temperature", [1e-3, 0.045, 1.0, 100.0])
@pytest.mark.parametrize("near_weight", [0.0, 1.3])
@pytest.mark.parametrize("coded", [False, True])
def test_loss_and_gradient_are_those_of_autograd(
    count: int, temperature: float, near_weight: float, coded: bool
) -> None:
    torch.manual_seed(count)
    terms = Terms(temperature, near_weight, 0.3, 2.0, 10 * temperature, 0.36)
    # As float32 has them: what is nearly equal differs by its rounding.
    images, short = (_rows(count, dim).float() for dim in (40, 24))
    fixed = nn.functional.normalize(short + 0.1 * torch.randn(count, 24), dim=1) * 0.97
    given = _Fixed(fixed) if coded else None
    loss, slope = _slope(short, lambda rows: fused_loss(images, rows, given and fixed, terms))
    torch_loss, torch_slope = _slope(short, lambda rows: _exact(images, rows, given, terms))
    precise = images.double()
    exact, steep = _slope(short.double(), lambda rows: _exact(precise, rows, given, terms))
    assert abs(loss - exact) <= 3 * abs(torch_loss - exact) + 2e-6 * (1 + abs(exact))
    off = (torch_slope - steep).abs().max()
    assert (slope - steep).abs().max() <= 3 * off + 1e-7 * steep.abs().max()


def test_products_in_bfloat16_leave_the_loss_and_hardly_touch_its_gradient() -> None:
    torch.manual_seed(0)
    terms = Terms(0.045, 1.0, 0.3, 2.0, 0.5, 0.36)
    # Of more than one block.
    images, short = (_rows(640, dim).float() for dim in (40, 24))
    fixed = nn.functional.normalize(short + 0.1 * torch.randn(640, 24), dim=1)
    loss, slope = _slope(short, lambda rows: fused_loss(images, rows, fixed, terms))
    same, near = _slope(short, lambda rows: fused_loss(images, rows, fixed, terms, bfloat16=True))
    assert same == loss
    assert (near - slope).norm() < 0.01 * slope.norm()


def _slope(
    short: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[float, torch.Tensor]:
    """A loss, and its gradient times 3."""
    rows = short.clone().requires_grad_()
    loss = loss_of(rows)
    (3 * loss).backward()
    assert rows.grad is not None
    return loss.item(), rows.grad.double()


def test_exponentials_as_close_as_float32_allows() -> None:
    x = np.linspace(-87, 4, 160_000, dtype=np.float32).reshape(10, -1)
    found = np.empty_like(x)

    @njit
    def all_rows(x, found):
        sums = np.empty(len(x))
        for i in range(len(x)):
            sums[i] = exponentials(x, i, np.float32(1), np.float32(0), found, i)
        return sums

    sums = all_rows(x, found)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=3e-7)
    np.testing.assert_allclose(sums, exact.sum(1), rtol=1e-6)
    # What float32 cannot hold is all but nothing.
    least = np.full((1, 16), -1e30, np.float32)
    all_rows(least, least)
    assert (least < 2e-38).all()


def test_other_batches_are_left_to_torch() -> None:
    assert not fits(33, CPU) and not fits(32, torch.device("cuda"))


def test_words_found_by_kernels_are_those_of_torch() -> None:
    torch.manual_seed(0)
    short, codes = nn.functional.normalize(torch.randn(3000, 32), dim=1), Codes(4, 16)
    codes.fit(short, 0)
    assert codes._words is not None
    fast, codes._words = codes.decode(short), None
    # A row that is as near to two words may take either.
    same = (fast - codes.decode(short)).abs().amax(1) < 1e-6
    assert same.float().mean() > 0.999
