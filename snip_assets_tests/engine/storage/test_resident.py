"""Pages of memory maps do not pile up in resident memory."""

import sys
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import copies, progress
from snip_assets.engine.features import Features
from snip_assets.engine.storage import resident
from snip_assets.engine.storage.files import open_npy

ROWS, DIM = 300_000, 64
LIMIT, SLACK = 8 << 20, 24 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Watch:
    """Notes the most file pages seen."""

    peak = 0

    def advance(self, amount: int = 1) -> None:
        self.peak = max(self.peak, resident.file_bytes())

    def close(self) -> None:
        pass


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    # The first use brings in pages of libraries.
    np.save(tmp_path / "few.npy", np.ones((9, DIM), np.float32))
    copies.hash_shard(tmp_path / "few.npy", tmp_path / "few_hashes.npy", 2)
    before = resident.file_bytes()
    monkeypatch.setattr(resident, "LIMIT", LIMIT)
    monkeypatch.setattr(resident, "EVERY", 0.0)
    monkeypatch.setattr(resident, "_floor", before)
    return before


def test_reading_features_leaves_no_pages(small: int, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    x = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    np.save(path, x)
    watch = Watch()
    with progress.reporting(lambda *_: watch):
        copies.hash_shard(path, tmp_path / "hashes.npy", 2)
    assert watch.peak - small < SLACK < x.nbytes
    features = Features([path], np.array([0, ROWS]))
    for seed in range(5):
        rows = np.sort(np.random.default_rng(seed).integers(0, ROWS, 2000))
        np.testing.assert_array_equal(features.take(rows), x[rows])
        watch.advance()
    assert watch.peak - small < SLACK


def test_pages_given_back_are_read_again(small: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1 << 22))
    array = open_npy(tmp_path / "x.npy")
    assert int(array.sum()) == (1 << 22) * ((1 << 22) - 1) // 2
    assert resident.file_bytes() - small > LIMIT
    resident.trim()
    assert resident.file_bytes() - small < LIMIT
    assert int(array[-1]) == (1 << 22) - 1


def test_as_many_open_files_as_the_system_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = [256]

    def refusing(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > 24_576:
            raise ValueError("current limit exceeds maximum limit")
        granted[0] = limits[0]

    endless = resident.resource.RLIM_INFINITY
    monkeypatch.setattr(resident.resource, "getrlimit", lambda _: (granted[0], endless))
    monkeypatch.setattr(resident.resource, "setrlimit", refusing)
    assert resident.allow_open_files() == granted[0] == resident.MOST_FILES // 4
    # Not lowered by the next who asks.
    assert resident.allow_open_files() == granted[0]
