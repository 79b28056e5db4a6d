from pathlib import Path

import numpy as np
import pytest
import torch

from snip_assets.engine.compress import BLOCK_ROWS, compress, compress_shard
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings

SETTINGS = Settings(device="cpu")


@pytest.fixture(scope="module")
def net() -> SnipNet:
    torch.manual_seed(0)
    return SnipNet([24, 40, 8]).eval()


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 24)).astype(np.float16)


@pytest.mark.parametrize("count", [0, 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 1])
def test_shard_equals_the_net_whatever_the_workers(
    net: SnipNet, tmp_path: Path, count: int
) -> None:
    source = tmp_path / "in.npy"
    np.save(source, rows(count))
    written = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.npy"
        facts = compress_shard(net, source, out, Settings(device="cpu", workers=workers))
        assert facts["rows"] == count and facts["dim"] == 8
        written.append(out.read_bytes())
    assert written[0] == written[1]
    short = np.load(out)
    assert short.dtype == np.float16 and short.shape == (count, 8)
    np.testing.assert_allclose(short, net(torch.from_numpy(rows(count))).detach(), atol=1e-3)
    assert np.array_equal(short, compress(net, rows(count), SETTINGS))


@pytest.mark.parametrize(("value", "words"), [(0.0, "all zeros"), (np.nan, "NaN"), (np.inf, "NaN")])
def test_a_bad_row_is_named(net: SnipNet, tmp_path: Path, value: float, words: str) -> None:
    data, row = rows(BLOCK_ROWS + 9), BLOCK_ROWS + 5
    data[row] = value
    np.save(tmp_path / "bad.npy", data)
    with pytest.raises(BadInputError, match=f"bad.npy: row {row} .*{words}"):
        compress_shard(net, tmp_path / "bad.npy", tmp_path / "out.npy", SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.npy"]
    with pytest.raises(BadInputError, match=f"row {row} "):
        compress(net, data, SETTINGS)


def test_features_of_another_model_are_refused(net: SnipNet, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((3, 25), np.float32))
    with pytest.raises(BadInputError, match=r"in.npy: 25 numbers a row, but the net takes 24"):
        compress_shard(net, tmp_path / "in.npy", tmp_path / "out.npy", SETTINGS)


def test_unknown_device_is_refused(net: SnipNet) -> None:
    with pytest.raises(BadInputError, match="tpu"):
        compress(net, rows(2), Settings(device="tpu"))
