"""Calibration reaches its target on rows it has not seen, and says when it cannot."""

from dataclasses import replace

import numpy as np
import pytest

from snip_assets.engine import calibrate, calibration, evidence
from snip_assets.engine.axes import Axes
from snip_assets.engine.errors import SnipError
from snip_assets.engine.exact import exact_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.stand_ins import stand_ins
from snip_assets.engine.trained import TrainedIndex


def rows(seed: int, count: int = 6000, dim: int = 48) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = np.random.default_rng(9).normal(size=(30, dim))[random.integers(0, 30, count)]
    x = x + random.normal(size=(count, dim)) * 0.7
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = random.permutation(count)[: count // 4]
    step = random.normal(size=(len(near), dim))
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    x[near] = x[(near + 17) % count] + step * random.uniform(0, 0.35, (len(near), 1))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def brute_force(x: np.ndarray, limit: float) -> set[tuple[int, int]]:
    later, earlier = np.nonzero(np.tril(2 - 2 * x @ x.T <= limit, -1))
    return set(zip(later.tolist(), earlier.tolist(), strict=True))


def test_exact_pairs_equals_brute_force() -> None:
    x = rows(1, 700)
    later, earlier = exact_pairs(x, np.arange(0, 700, 3), 0.1)
    some = {p for p in brute_force(x, 0.1) if p[0] % 3 == 0 or p[1] % 3 == 0}
    assert set(zip(later.tolist(), earlier.tolist(), strict=True)) == some
    assert len(later) == len(some)


def test_exact_pairs_decide_exactly_at_the_threshold() -> None:
    random = np.random.default_rng(0)
    x, other = (random.normal(size=(400, 300)) for _ in range(2))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    other -= (other * x).sum(1, keepdims=True) * x
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    # Half of them a hundred-thousandth of the threshold below it, half above.
    cosine = 1 - 0.1 * (1 + 1e-5 * np.repeat([-1, 1], 200)[:, None]) / 2
    both = np.concatenate([x, cosine * x + np.sqrt(1 - cosine**2) * other]).astype(np.float32)
    later, earlier = exact_pairs(both, np.arange(800), 0.1)
    assert set(zip(later.tolist(), earlier.tolist(), strict=True)) == {
        (400 + i, i) for i in range(200)
    }


@pytest.mark.parametrize("spread, limit", [(2.5e-4, 1e-6), (1e-3, 2e-5), (0.07, 0.1)])
def test_exact_pairs_of_a_tight_cluster(spread: float, limit: float) -> None:
    random = np.random.default_rng(0)
    x = np.zeros((300, 64))
    x[:, :16] = random.normal(size=(300, 16)) * spread
    x += random.normal(size=64) / 8
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    later, earlier = exact_pairs(x, np.arange(300), limit)
    apart = ((x.astype(np.float64)[:, None] - x[None]) ** 2).sum(2)
    expected = np.nonzero(np.tril(apart <= limit, -1))
    assert 100 < len(expected[0]) < 44_000
    np.testing.assert_array_equal([later, earlier], expected)


def test_a_large_group_of_near_copies_does_not_fill_the_memory(monkeypatch) -> None:
    x = rows(1, 900)
    x[:600] = x[0] + 1e-3 * x[:600]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    sample = calibration.Sample(x, x, np.zeros(len(x), bool), len(x))
    queries, later, _ = evidence._own_pairs(sample, Settings())
    assert len(queries) == 900 and len(later) > 170_000
    monkeypatch.setattr(evidence, "MOST_NEAR", 50_000)
    queries, later, _ = evidence._own_pairs(sample, Settings())
    assert 100 < len(queries) < 200
    assert len(later) < 70_000
    # As many as before where rows have few.
    monkeypatch.setattr(evidence, "MOST_NEAR", 1 << 23)
    assert len(evidence._own_pairs(replace(sample, raw=rows(2, 900)), Settings())[0]) == 900


def test_target_is_reached_on_other_rows() -> None:
    x, other = rows(1), rows(2)
    trained = TrainedIndex.train(x, 20, "PQ8")
    settings = Settings(target_recall=0.98)
    fresh = np.zeros(len(x), bool)
    found, axes = calibrate.calibrate(trained, calibration.Sample(x, x, fresh, len(x)), settings)
    assert found.recall >= 0.98
    assert axes.shape == (48, found.width)
    np.testing.assert_allclose(axes.T @ axes, np.eye(found.width), atol=1e-5)
    placed = evidence.Placed.of(trained, other, found.probes, 1)
    later, earlier = exact_pairs(other, np.arange(len(other)), 0.1)
    at = placed.lists[later] == placed.lists[earlier, :1]
    margin = np.where(at.any(1), placed.margin[later, at.argmax(1)], np.inf)
    excess = ((other[later] - placed.decoded[earlier]) ** 2).sum(1) - placed.error[later]
    assert len(later) > 300
    assert ((margin <= found.radius) & (excess <= found.slack)).mean() > 0.97


@pytest.mark.parametrize("limit", [1e-3, 1e-4])
def test_pairs_nearer_than_a_step_pass_the_leading_axes(limit: float) -> None:
    """There rounding adds more than lies between them, if the codec leaves no error of its own."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 100))
    x = np.concatenate([x, x]) / np.linalg.norm(np.concatenate([x, x]), axis=1, keepdims=True)
    step = random.normal(size=(600, 100))
    step *= (limit * random.random((600, 1))) ** 0.5 / np.linalg.norm(step, axis=1, keepdims=True)
    x[600:] += step
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    trained = TrainedIndex.train(x, 4, "SQfp16")
    sample = calibration.Sample(x, x, np.ones(len(x), bool), len(x))
    found, wide = calibrate.calibrate(trained, sample, replace(Settings(), max_distance=limit))
    axes = Axes(wide, found.axis_scale)
    home = trained.assigner.nearest(x, 1)[0][:, 0]
    residuals = x - trained.centroids[home]
    codes = axes.decode(trained.codec, axes.book(trained.codec), trained.codec.encode(residuals))
    decoded = codes.steps.astype(np.int64)
    one, other = np.arange(600, 1200), np.arange(600)
    asked = axes.project(x[one]) - axes.project(trained.centroids)[home[other]]
    steps = axes.coordinates(asked).steps
    own = axes.coordinates(axes.project(x) - axes.project(trained.centroids)[home]).steps[one]
    excess = ((steps - decoded[other]) ** 2).sum(1) - ((own - decoded[one]) ** 2).sum(1)
    assert (excess <= axes.steps(found.short_slack)).mean() > 0.995


def test_a_target_out_of_reach_is_refused() -> None:
    x = rows(3)
    trained = TrainedIndex.train(x, 180, "PQ8")
    settings = replace(Settings(), target_recall=0.9999, max_probes=1)
    sample = calibration.Sample(x, x, np.zeros(len(x), bool), len(x))
    with pytest.raises(SnipError, match="cannot be reached"):
        calibrate.calibrate(trained, sample, settings)


def test_without_any_pair_rows_that_were_moved_stand_in() -> None:
    x = np.random.default_rng(0).normal(size=(800, 64)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    trained = TrainedIndex.train(x, 8, "SQ8")
    sample = calibration.Sample(x, x, np.zeros(len(x), bool), len(x))
    found, _ = calibrate.calibrate(trained, sample, Settings())
    assert found.stand_ins and found.sampled_pairs == 0
    assert found.slack >= 0.1
    moved = stand_ins(sample, None, np.arange(500), 0.1, 0)
    apart = ((moved[:500] - moved[500:]) ** 2).sum(1)
    assert 0.09 < apart.max() < 0.11 and 0.045 < apart.mean() < 0.055


def test_many_rows_without_pairs_cost_a_bounded_number_of_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    trained = TrainedIndex.train(x, 20, "PQ4")
    sample = calibration.Sample(None, x, np.ones(len(x), bool), 20_000_000)
    found, _ = calibrate.calibrate(trained, sample, Settings())
    monkeypatch.setattr(calibrate, "MANY_ROWS", 1 << 62)
    unbounded, _ = calibrate.calibrate(trained, sample, Settings())
    assert unbounded.candidates_per_row > 10 * calibrate.MOST_CANDIDATES
    assert found.stand_ins and 0 <= found.slack < unbounded.slack
    assert found.candidates_per_row <= calibrate.MOST_CANDIDATES


def test_each_limit_loses_no_more_than_its_share() -> None:
    """2000 pairs of which some need much: those that a limit may not all give up."""
    x = rows(1, 2000, 8)
    trained = TrainedIndex.train(x, 8, "PQ4")
    sample = calibration.Sample(x, x, np.ones(len(x), bool), len(x))
    seen = evidence.gather(trained, sample, Settings(), None, 4)
    place = np.arange(2000)
    needs = evidence.Needs(
        margin=np.zeros(2000),
        # 70 of the first are lost on the leading axes, so that not all of the last may be too.
        short=np.where(place < 70, 5, 0.01)[:, None],
        excess=np.where(place < 1620, 0.1, 0.5),
        snip=np.where(place < 1900, 0.1, 0.5),
    )
    loss = 0.4
    found = calibrate._Limits.choose(replace(seen, needs=needs, stand_ins=False), loss, 0)
    assert found.width == 8 and found.lost_by_short_code == 70 / 2000 <= loss / 10
    assert found.lost_by_snip_limit <= loss / 20
    held = (needs.excess <= found.slack) & (needs.short[:, 0] <= found.short_slack)
    assert found.recall == held.mean() >= 1 - loss / 2


def test_known_pairs_make_up_for_a_sample_with_few() -> None:
    x = rows(1)
    trained = TrainedIndex.train(x, 20, "PQ8")
    later, earlier = exact_pairs(x, np.arange(len(x)), 0.1)
    some = x[:40]
    sample = calibration.Sample(some, some, np.ones(40, bool), len(x))
    alone, _ = calibrate.calibrate(trained, sample, Settings())
    every = np.ones(len(later))
    known = calibrate.KnownPairs(x, later, earlier, every > 0, every)
    found, _ = calibrate.calibrate(trained, sample, Settings(), known)
    assert alone.stand_ins and not found.stand_ins
    assert found.sampled_pairs >= len(later)
    assert found.recall >= 0.995


def test_it_is_chance_which_row_of_a_pair_is_the_later_one() -> None:
    x, settings = rows(3, 2000), Settings(max_distance=0.1)
    trained = TrainedIndex.train(rows(4), 16, "PQ4", 0)
    sample = calibration.Sample(None, rows(5, 1000), np.ones(1000, bool), 100_000)
    one, other = exact_pairs(x, np.arange(len(x)), settings.max_distance)
    every = np.ones(len(one))
    found = [
        calibrate.calibrate(
            trained, sample, settings, calibrate.KnownPairs(x, *ends, every > 0, every)
        )[0]
        for ends in ((one, other), (other, one))
    ]
    assert found[0].sampled_pairs == found[1].sampled_pairs == len(one)
    for name in ("slack", "radius", "short_slack", "snip_limit", "recall"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-6)


def test_a_small_sample_still_tells_the_tail() -> None:
    random = np.random.default_rng(0)
    share, beyond, largest = 0.001, [], []
    for _ in range(200):
        sample = random.exponential(size=800)
        beyond.append(np.exp(-calibrate.exceeded_by(sample, share)))
        largest.append(np.exp(-sample.max()))
    # The largest of 800 values alone loses 0.00125 on average, and often three times that.
    assert np.mean(beyond) < share < np.mean(largest)
    assert np.quantile(beyond, 0.95) < 0.8 * np.quantile(largest, 0.95)
    many = random.exponential(size=100_000)
    assert calibrate.exceeded_by(many, share) == np.quantile(many, 1 - share, method="higher")


def test_the_radius_reaches_beyond_the_pairs_that_were_seen() -> None:
    x, settings = rows(3), Settings()
    trained = TrainedIndex.train(rows(4), 60, "PQ8")
    sample = calibration.Sample(x, x, np.zeros(len(x), bool), len(x))
    found, _ = calibrate.calibrate(trained, sample, settings)
    assert not found.stand_ins
    placed = evidence.Placed.of(trained, x, found.probes, 1)
    later, earlier = exact_pairs(x, np.arange(len(x)), settings.max_distance)
    leading = evidence.Leading.of(trained, x - trained.centroids[placed.lists[:, 0]])
    margin = evidence.Needs.either_way(x, placed, later, earlier, leading).margin
    assert found.radius > 1.2 * margin.max()


def test_of_pairs_beyond_all_probes_no_radius_is_made() -> None:
    margin = np.append(np.random.default_rng(0).exponential(0.01, size=800), np.inf)
    radius = calibrate._radius(margin, 1e-4, calibrate.exceeded_by)
    assert margin[:-1].max() < radius < 1.2 * margin[:-1].max()
