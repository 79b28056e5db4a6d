"""True pairs against brute force; what was searched once is kept, and no more than that."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from snip_assets.engine import audit, choices, shards, stations, truth
from snip_assets.engine.known_pairs import known_pairs
from snip_assets.engine.layout import Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage.files import read_manifest, seal
from snip_assets.options import default_source

Ends = set[tuple[int, int]]


def arrive(folder: Path, keys: list[str], **settings: float) -> stations.Run:
    """The run of an output folder after some shards of the sample were registered and hashed."""
    sample: Source = default_source({})
    layout = Layout(folder)
    shards.register(layout, sample, keys)
    run = stations.Run(layout, Settings(**settings))
    stations.clip_features(run, keys)
    return run


def brute_force(run: stations.Run) -> Ends:
    raw = shards.raw_features(run.registry)
    x = raw.take(np.arange(len(raw))).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = np.triu(cdist(x, x, "sqeuclidean") <= run.settings.max_distance, 1)
    return set(map(tuple, np.argwhere(near).tolist()))


def found(run: stations.Run, share: float, seed: int = 0, some: slice = slice(None)) -> Ends:
    ready = run.registry.shards
    ends = truth.true_pairs(run, ready, ready[some], share, seed)
    return set(zip(*(a.tolist() for a in ends), strict=True))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Shards of each search that was made."""
    ordinals, search = [], truth.exact_neighbours

    def recorded(*arguments):
        ordinals.append(arguments[-1])
        return search(*arguments)

    monkeypatch.setattr(truth, "exact_neighbours", recorded)
    return ordinals


def test_an_arrival_is_all_that_is_searched(tmp_path: Path, searched: list[list[int]]) -> None:
    run = arrive(tmp_path, ["0000", "0001", "0002"])
    every = brute_force(run)
    assert len(every) > 500
    assert found(run, 1.0) == every == found(run, 1.0)
    assert searched == [[0, 1, 2]]

    run = arrive(tmp_path, ["0003"])
    more = brute_force(run)
    # Of all rows a smaller share is part of a larger.
    some = found(run, 0.3)
    assert searched == [[0, 1, 2], [3]]
    rows = np.arange(run.registry.rows)
    drawn = set(rows[truth.drawn(rows, 0, 0.3)].tolist())
    assert 0.25 < len(drawn) / len(rows) < 0.35
    assert some == {ends for ends in more if ends[0] in drawn} < more
    assert found(run, 0.3, some=slice(3, 4)) == {e for e in some if e[1] >= len(rows) - 500}
    assert len(searched) == 2
    # The last shard was searched for a share alone.
    assert found(run, 1.0) == more
    assert searched[2:] == [[3]]
    run.layout.true_pairs(0).write_bytes(b"damaged")
    assert found(run, 1.0) == more
    assert searched[3:] == [[0, 1, 2, 3]]


def test_another_seed_or_threshold_or_row_is_searched_for(
    tmp_path: Path, searched: list[list[int]]
) -> None:
    run = arrive(tmp_path, ["0000", "0001"])
    one, other = found(run, 0.5), found(run, 0.5, seed=20260131)
    assert one != other and found(run, 0.5) == one
    found(run, 0.5, seed=20260201)
    kept = sorted(path.name for path in run.layout.true_pairs(0).parent.iterdir())
    assert kept == ["true_pairs-0.parquet", "true_pairs-20260201.parquet"]
    assert len(searched) == 3
    nearer = stations.Run(run.layout, Settings(max_distance=0.02))
    assert found(nearer, 0.5) < one
    assert len(searched) == 4
    # The second shard was hashed anew, with other contents.
    hashes = run.layout.clip_features("0001")
    changed = np.load(hashes) + np.uint64(1)
    np.save(hashes, changed)
    manifest = read_manifest(hashes)
    assert manifest is not None
    seal(hashes, manifest.inputs, **manifest.facts)
    found(nearer, 0.5)
    assert searched[4:] == [[1]]


def test_recall_counts_a_pair_at_its_first_copies(tmp_path: Path) -> None:
    run = arrive(tmp_path, ["0000", "0001", "0002", "0003"])
    stations.snip_model(run)
    stations.snip_features(run, run.registry.keys)
    stations.trained_index(run)
    stations.index_shards(run, run.registry.keys)
    stations.snip_index(run)
    stations.duplicate_pairs(run, run.registry.keys)
    ((later, first),) = run.exact_copies(3)
    copies = dict(zip(later.tolist(), first.tolist(), strict=True))
    assert copies
    true = {pair for pair in brute_force(run) if not copies.keys() & set(pair)}
    stored: Ends = set()
    for key in run.registry.keys:
        pairs = read_pairs(run.layout.duplicate_pairs(key))
        stored |= set(zip(pairs.earlier_row.tolist(), pairs.row.tolist(), strict=True))
    whole = audit.query_recall(run, run.registry.rows, 0)
    assert (whole.successes, whole.trials) == (len(true & stored), len(true))
    last = run.registry.shards[3:]
    into = audit.recall_into(run, last, 500, 0)
    inside = {pair for pair in true if pair[1] >= last[0].start}
    assert (into.successes, into.trials) == (len(inside & stored), len(inside))
    # Of many shards, only random ones are searched; rows are drawn from all.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "LEAST_SEARCHED", 501)
        part = audit.query_recall(run, 1000, 0)
    ends = [{p for p in true if s.start <= p[1] < s.stop} for s in run.registry.shards]
    pairs = [(one | other) for one, other in combinations(ends, 2)]
    assert (part.successes, part.trials) in [(len(p & stored), len(p)) for p in pairs]
    assert part.trials < whole.trials


def test_known_pairs_of_many_rows_are_those_that_reach_into_random_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = arrive(tmp_path, ["0000", "0001", "0002", "0003"])
    stations.snip_model(run)
    stations.snip_features(run, run.registry.keys)
    rows = np.arange(run.registry.rows)
    hashes = run.hashes(rows)
    true = {(a, b) for a, b in brute_force(run) if hashes[a] != hashes[b]}
    whole = known_pairs(run, rows)
    assert whole is not None and whole.true.sum() == len(true)
    assert set(whole.weight[whole.true]) == {1.0}
    monkeypatch.setattr(choices, "LEAST_SEARCHED", 501)
    part = known_pairs(run, rows)
    assert part is not None and set(part.weight[part.true]) == {2.0}
    inside = [
        {p for p in true for row in p if s.start <= row < s.stop} for s in run.registry.shards
    ]
    counts = [len(one | other) for one, other in combinations(inside, 2)]
    assert part.true.sum() in counts and part.true.sum() < len(true)
