"""The cache of remote files: what it holds is whole, of today, and was used last."""

from __future__ import annotations

import gc
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine.shards import Source
from snip_assets.engine.storage import files, remote_files
from snip_assets.engine.storage.remote import DownloadError
from snip_assets.engine.storage.remote_files import Cache
from snip_assets.options import SAMPLE_FEATURES

from .test_remote_files import SIZE, memory

__all__ = ["memory"]


def test_the_cache_lets_go_what_was_not_used_for_longest(memory: Source, tmp_path: Path) -> None:
    remote_files.use(Cache(tmp_path, 2 * SIZE))
    for number in (0, 1):
        files.open_npy(memory.features / f"img_emb_000{number}.npy")
        (copy,) = tmp_path.glob(f"*_000{number}.npy")
        os.utime(copy, (number, number))
    gc.collect()
    for number in (0, 2):
        files.open_npy(memory.features / f"img_emb_000{number}.npy")
        gc.collect()
    left = {p.name.split("-", 1)[1] for p in tmp_path.glob("*.npy")}
    assert left == {"img_emb_0000.npy", "img_emb_0002.npy"}


def test_a_changed_file_is_fetched_again(memory: Source, tmp_path: Path) -> None:
    remote_files.use(Cache(tmp_path, 2 * SIZE))
    one, other = (memory.features / f"img_emb_000{number}.npy" for number in (0, 1))
    before = files.open_npy(one)
    one.write_bytes(other.read_bytes())
    after = files.open_npy(one)
    np.testing.assert_array_equal(before, np.load(SAMPLE_FEATURES / "img_emb_0000.npy"))
    np.testing.assert_array_equal(after, np.load(SAMPLE_FEATURES / "img_emb_0001.npy"))


def test_two_runs_in_a_process_read_the_same_whoever_was_made_last(
    memory: Source, tmp_path: Path
) -> None:
    held = []
    for run in "abab":
        remote_files.use(Cache(tmp_path / run, 4 * SIZE))  # as making a run does
        with ThreadPoolExecutor(2) as pool:
            paths = [memory.features / f"img_emb_000{n}.npy" for n in (0, 1, 0, 1)]
            held.append(list(pool.map(files.open_npy, paths)))
    shutil.rmtree(tmp_path / "a")  # the output folder of one of them goes
    remote_files.use(Cache(tmp_path / "a", 4 * SIZE))
    held.append([files.open_npy(path) for path in paths])
    for arrays in held:
        for number, array in zip((0, 1, 0, 1), arrays, strict=True):
            np.testing.assert_array_equal(
                array, np.load(SAMPLE_FEATURES / f"img_emb_000{number}.npy")
            )


def test_half_a_file_does_not_stay_in_the_cache(
    memory: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote_files.use(Cache(tmp_path, SIZE))
    path = memory.features / "img_emb_0000.npy"
    with monkeypatch.context() as patch:
        patch.setattr(type(path.fs), "open", lambda *_, **__: io.BytesIO(bytes(SIZE // 2)))
        with pytest.raises(DownloadError, match=f"{SIZE // 2} bytes came of {SIZE}; run again"):
            files.open_npy(path)
    assert not list(tmp_path.glob("*.npy"))
    assert len(files.open_npy(path)) == 500
