"""Distances of codes relative to what their words miss, against the errors of the rows."""

from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import stations, tiers
from snip_assets.engine.code_distance import POWERS, CodeErrors, CodeScale, relative
from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.exact import exact_pairs
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.trained import TrainedIndex


def uneven(seed: int, count: int = 8000, dim: int = 32) -> np.ndarray:
    """Rows of clusters, some narrow and some wide, with near-duplicates in all of them."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 40, count)
    x = np.random.default_rng(9).normal(size=(40, dim))[kind]
    x = x + random.normal(size=(count, dim)) * np.linspace(0.1, 1.0, 40)[kind, None]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = random.permutation(count)[: count // 3]
    x[near] = x[(near + 17) % count] + random.normal(size=(len(near), dim)) * 0.02
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def coded(trained: TrainedIndex, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    home = trained.assigner.nearest(x, 1)[0][:, 0]
    codes = trained.codec.encode(x - trained.centroids[home])
    return codes, trained.centroids[home] + trained.codec.decode(codes)


def test_errors_are_those_of_other_rows_too() -> None:
    x, other = uneven(1), uneven(2)
    trained = TrainedIndex.train(x, 16, "PQ8")
    errors = CodeErrors.learn(trained, x, workers=2)
    np.testing.assert_array_equal(errors.table, CodeErrors.learn(trained, x, workers=1).table)
    codes, decoded = coded(trained, other)
    expected, real = errors.of(codes), ((other - decoded) ** 2).sum(1)
    assert expected.mean() == pytest.approx(1, abs=0.05)
    assert expected.max() <= errors.largest
    eighths = real[np.argsort(expected)].reshape(8, -1).mean(1)
    assert (np.diff(eighths) > 0).all()
    assert eighths[-1] > 3 * eighths[0]


def test_the_power_that_tells_most_pairs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uneven(1)
    trained = TrainedIndex.train(x, 16, "PQ8")
    errors = CodeErrors.learn(trained, x)
    codes, decoded = coded(trained, x)
    later, earlier = exact_pairs(x, np.arange(len(x)), 0.1)
    true = np.sort(later.astype(np.int64) * len(x) + earlier)
    own, recall = errors.of(codes), {}
    for powers in ((0.0,), (0.5,), POWERS):
        monkeypatch.setattr(tiers, "POWERS", powers)
        found = tiers.accuracy(x, decoded, own, np.arange(len(x)), true, 0, Settings())["codes"]
        assert found["precision"] >= tiers.PRECISION["codes"]
        recall[powers] = found["recall"]
    assert recall[POWERS] >= max(recall[0.0,], recall[0.5,])
    assert recall[0.0,] != recall[0.5,]


@pytest.mark.parametrize("power", POWERS)
def test_what_the_join_lets_through_holds_every_pair(power: float) -> None:
    random = np.random.default_rng(0)
    errors = CodeErrors(random.exponential(1 / 8, (8, 256)).astype(np.float32))
    scale = CodeScale(errors, power, 0.1 / 0.07)
    codes = random.integers(0, 256, (20_000, 8)).astype(np.uint8)
    codes[0] = errors.table.argmax(1)
    distance = random.uniform(0, 0.3, len(codes)).astype(np.float32)
    distance[0] = 0.07 * errors.largest**power * (1 - 1e-6)
    near = scale.estimates(distance, codes, codes) <= np.float32(0.1)
    assert near[0] and not near.all()
    assert distance[near].max() <= scale.widest(0.1)


def test_a_codec_without_words_leaves_distances_as_they_are() -> None:
    x = uneven(1, 600)
    errors = CodeErrors.learn(TrainedIndex.train(x, 4, "SQ8"), x)
    own = errors.of(np.zeros((2, 32), np.uint8))
    distance = np.array([0.03, 0.2], np.float32)
    np.testing.assert_array_equal(relative(distance, own, own, 0.5), distance)
    assert errors.largest == 1.0


def test_an_index_without_errors_says_what_to_do(tmp_path: Path) -> None:
    run = stations.Run(Layout(tmp_path), Settings(tier="codes"))
    with pytest.raises(StaleOutputError, match="train the index again"):
        run._code_errors(0.5)
