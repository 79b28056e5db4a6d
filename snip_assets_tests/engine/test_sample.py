from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.features import Features
from snip_assets.engine.sample import most_rows, sample_rows, text_features
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Registry, Shard, Source


def test_sample_is_seeded_ascending_and_without_repeats_past_32_bits() -> None:
    rows = sample_rows(3 * 2**32, 1000, 5)
    assert rows.dtype == np.int64 and len(rows) == 1000 and rows.max() > 2**32
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample_rows(3 * 2**32, 1000, 5))
    assert not np.array_equal(rows, sample_rows(3 * 2**32, 1000, 6))
    assert np.array_equal(sample_rows(7, 10, 0), np.arange(7))


def test_sample_fits_the_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((9, 512), np.float32))
    features = Features([tmp_path / "a.npy"], np.array([0, 9]))
    assert most_rows(features, Settings(memory_gb=1 / 1024)) == 128
    assert most_rows(features, Settings(memory_gb=1 / 1024), features) == 64
    assert most_rows(features, Settings()) == Settings().train_rows


def test_text_features_are_found_and_held_against_the_images(tmp_path: Path) -> None:
    images, texts = tmp_path / "img_emb", tmp_path / "text_emb"
    images.mkdir()
    texts.mkdir()
    np.save(images / "img_emb_0.npy", np.ones((4, 3), np.float16))
    path = images / "img_emb_0.npy"
    shard = Shard("0", 0, 0, 4, 3, "<f2", path, tmp_path / "metadata_0.parquet")
    registry = Registry(Source(images, tmp_path), (shard,))
    assert text_features(registry) is None
    np.save(texts / "text_emb_0.npy", np.full((4, 3), 2, np.float16))
    found = text_features(registry)
    assert found is not None and found.take(np.array([3])).tolist() == [[2, 2, 2]]
    np.save(texts / "text_emb_0.npy", np.ones((5, 3), np.float16))
    with pytest.raises(BadInputError, match=r"text_emb_0.npy: shape \(5, 3\)"):
        text_features(registry)
