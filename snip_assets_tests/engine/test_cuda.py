"""What a GPU computes, where there is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snip_assets.engine import join, pairs, verify
from snip_assets.engine.compress import compress, compress_shard
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.model import SnipNet
from snip_assets.engine.settings import Settings

from .test_join import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
GPU = torch.device("cuda")
# Of a number below 0.5 in float16, the next.
ROUNDING = 2**-12


@pytest.fixture(scope="module")
def net() -> SnipNet:
    torch.manual_seed(0)
    return SnipNet([768, 512, 128]).eval().requires_grad_(False)


def test_compression_is_that_of_the_processor(net: SnipNet, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9000, 768)).astype(np.float16)
    np.save(tmp_path / "in.npy", x)
    written = set()
    for workers in (1, 3, 16):
        out = tmp_path / f"{workers}.npy"
        compress_shard(net, tmp_path / "in.npy", out, Settings(device="cuda", workers=workers))
        written.add(out.read_bytes())
    assert len(written) == 1
    here = compress(net, x, Settings(device="cpu")).astype(np.float32)
    np.testing.assert_allclose(np.load(out), here, atol=ROUNDING)


def test_a_bad_row_is_named(net: SnipNet) -> None:
    x = np.ones((5000, 768), np.float16)
    x[4321, 5] = np.nan
    with pytest.raises(BadInputError, match="row 4321 holds NaN"):
        compress(net, x, Settings(device="cuda"))


@pytest.mark.parametrize("workers", [1, 8])
def test_the_join_finds_the_same_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    world = World(tmp_path, "PQ8")
    reference, _ = pairs.find_pairs(world.join(), world.shards)
    monkeypatch.setattr(join, "DEVICE_LEAST", 0)
    monkeypatch.setattr(join, "DEVICE_SCORES", 5000)
    found, _ = pairs.find_pairs(replace(world.join(), device=GPU), world.shards, workers)
    for one, other in zip(reference, found, strict=True):
        for name in verify.FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert sum(map(len, found)) > 200
