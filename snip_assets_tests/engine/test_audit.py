"""Intervals hold what they promise, also where the pairs of a row are lost together."""

from __future__ import annotations

import numpy as np
import pytest

from snip_assets.engine.audit import clustered, wilson

RANDOM = np.random.default_rng(7)


def _large_groups() -> tuple[np.ndarray, np.ndarray]:
    """Three groups of 300 among small ones; some rows lose most of their pairs."""
    trials = np.concatenate([np.tile(np.arange(1, 300), 3), RANDOM.geometric(0.4, 2700)])
    found = np.where(RANDOM.random(len(trials)) < 0.03, 0.4, 1.0)
    return RANDOM.binomial(trials, found), trials


def _small_groups() -> tuple[np.ndarray, np.ndarray]:
    trials = RANDOM.geometric(0.4, 4000)
    return RANDOM.binomial(trials, 0.98), trials


@pytest.mark.parametrize("rows", [200, 1000])
@pytest.mark.parametrize("population", [_large_groups(), _small_groups()], ids=["large", "small"])
def test_the_interval_holds_the_truth_19_times_in_20(
    population: tuple[np.ndarray, np.ndarray], rows: int
) -> None:
    successes, trials = population
    true, held, draws = successes.sum() / trials.sum(), 0, 1000
    for seed in range(draws):
        some = np.random.default_rng(seed).choice(len(trials), rows, replace=False)
        found = clustered(successes[some], trials[some])
        held += found.low <= true <= found.high
    # Three standard deviations below 0.95.
    assert held / draws > 0.93


def test_single_trials_have_wilson_s_interval() -> None:
    successes, ones = (RANDOM.random(2000) < 0.9).astype(np.int64), np.ones(2000, np.int64)
    found, expected = clustered(successes, ones), wilson(int(successes.sum()), 2000)
    assert found.estimate == expected.estimate
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert clustered(ones, ones) == wilson(2000, 2000)


def test_no_trials_tell_nothing() -> None:
    none = np.empty(0, np.int64)
    assert (clustered(none, none).low, clustered(none, none).high) == (0.0, 1.0)
