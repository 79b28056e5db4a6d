"""What calibration goes by: it finds pairs of every kind, also where most pairs are of another."""

from pathlib import Path

import numpy as np

from .station_tools import found_and_true, paired, sampled, write_shard


def test_pairs_that_differ_by_the_noise_of_floats_alone_are_found(tmp_path: Path) -> None:
    """Each picture encoded twice: to the join they are as far apart as rounding puts them."""
    random = np.random.default_rng(5)
    x = random.normal(size=(700, 512)) / 512**0.5
    for key, own in (("0000", x), ("0001", x + 1e-6 * random.normal(size=x.shape) / 512**0.5)):
        write_shard(tmp_path, key, own.astype(np.float32))
    run = paired(tmp_path)
    found, true = found_and_true(run)
    assert len(true) == 700 and len(found & true) >= 0.99 * 700


def test_variants_of_one_row_are_found_among_nearer_pairs(tmp_path: Path) -> None:
    """Each variant counts in calibration, and not the row that all of them resemble alone."""
    random = np.random.default_rng(0)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    base = unit(random.normal(size=(1500, 512)))
    again = base[:1200] + 1e-6 * random.normal(size=(1200, 512))
    apart = random.uniform(0.08, 0.095, (500, 1)) ** 0.5
    variants = unit(base[:1] + apart * unit(random.normal(size=(500, 512))))
    write_shard(tmp_path, "0000", np.concatenate([base, again, variants]).astype(np.float32))
    run = paired(tmp_path)
    found, true = found_and_true(run)
    star = {pair for pair in true if pair[0] >= 2700 and pair[1] == 0}
    assert len(star) == 500 and len(star & found) >= 0.97 * 500


def test_a_large_group_of_near_copies_does_not_decide_about_all_others(tmp_path: Path) -> None:
    x = sampled(900, 0)
    noise = np.random.default_rng(0).normal(size=(600, x.shape[1]))
    near = x[:1] + 1e-3 * np.linalg.norm(x[0]) * noise
    order = np.random.default_rng(1).permutation(1500)
    write_shard(tmp_path, "0000", np.concatenate([x, near.astype(x.dtype)])[order])
    run = paired(tmp_path)
    found, true = found_and_true(run)
    assert len(true) > 600 * 599 / 2
    assert len(true - found) < 1e-4 * len(true)
    few = {pair for pair in true if order[list(pair)].max() < 900}
    assert len(few - found) <= 0.01 * len(few)
