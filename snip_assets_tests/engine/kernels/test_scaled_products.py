"""Products in whole numbers against NumPy, at the edges of what 32 bits hold."""

import numpy as np
import pytest

from snip_assets.engine.kernels import tiles
from snip_assets.engine.kernels.list_scores import Scorer
from snip_assets.engine.kernels.whole_rows import column_panels, products, room, write_products


def rows_of(whole: np.ndarray) -> np.ndarray:
    """The same, filled up."""
    out = room(*whole.shape)
    out[: len(whole), : whole.shape[1]] = whole
    return out


@pytest.mark.parametrize(("dim", "columns"), [(1, 1), (33, 31), (96, 64), (200, 70), (768, 33)])
def test_products_of_16_bits_are_exact(dim: int, columns: int) -> None:
    random = np.random.default_rng(dim)
    most = min(32_767, int((2**31 / dim) ** 0.5) - 1)
    rows, others = (random.integers(-most, most + 1, (n, dim)) for n in (37, columns))
    # The largest sums there can be, and numbers whose halves are all ones or zeros.
    rows[0], others[0], rows[1] = most, most, -most
    edges = [v for v in (-1, 0, 255, 256, -256, -32_768, 127, -128) if abs(v) <= most]
    rows[2] = np.resize(edges, dim)
    panels = column_panels(others)
    scale, bias = np.ones(len(panels) * 32, np.float32), np.zeros(len(panels) * 32, np.float32)
    bias[-1] = 0.5
    found = products(panels, rows_of(rows), scale, bias)
    expected = np.zeros(found.shape, np.float32)
    expected[:37, :columns] = rows @ others.T
    np.testing.assert_array_equal(found, expected + bias)


def test_products_of_8_bits_are_the_same_with_and_without_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((100, 128)).astype(np.float32)
    centroids = random.standard_normal((70, 128)).astype(np.float32)

    def scores() -> np.ndarray:
        rows = Scorer(centroids)(x)
        out = np.empty((len(rows.whole), len(rows.scale)), np.float32)
        write_products(rows.panels, rows.whole, rows.scale, rows.bias, out)
        return out

    found = scores()
    monkeypatch.setattr(tiles, "LENT", False)
    np.testing.assert_array_equal(found, scores())
