"""The join against brute force: every codec, any blocks, threads and grouping of shards."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from snip_assets.engine import (
    encode,
    index,
    join,
    list_queries,
    listed_pairs,
    pairs,
    query_rows,
    verify,
    waiting,
)
from snip_assets.engine.axes import Axes, leading_axes, scale_of
from snip_assets.engine.codec import CODECS
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.features import Features
from snip_assets.engine.kernels.registers import AT_ONCE
from snip_assets.engine.kernels.whole_rows import STEPS, Decoded, whole_rows
from snip_assets.engine.storage import row_file
from snip_assets.engine.trained import TrainedIndex

DIM, LISTS, RADIUS, PROBES = 64, 12, 0.1, 4
SLACK, SHORT_SLACK = 0.08, 0.05
SIZES = (700, 1, 0, 499)


class Shifted(Features):
    """Rows whose ids begin far up."""

    def __init__(self, paths: list[Path], offsets: np.ndarray, start: int) -> None:
        super().__init__(paths, offsets)
        self.start = start

    def take(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return super().take(np.asarray(rows).astype(np.int64) - self.start, out)


def make_rows(seed: int) -> np.ndarray:
    """Clusters on the sphere; a third of the rows are near-duplicates of others."""
    random = np.random.default_rng(seed)
    total = sum(SIZES)
    x = random.normal(size=(20, DIM))[random.integers(0, 20, total)]
    x = x + random.normal(size=(total, DIM)) * 0.8
    near = random.integers(0, total, total // 3)
    x[random.permutation(total)[: len(near)]] = (
        x[near] + random.normal(size=(len(near), DIM)) * 0.15
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


class World:
    """Rows in shards, encoded with one trained index."""

    def __init__(self, folder: Path, codec: str, start: int = 0) -> None:
        self.x = make_rows(1)
        self.trained = TrainedIndex.train(self.x.astype(np.float32), LISTS, codec)
        leading = leading_axes(self.x.astype(np.float32), 16)
        self.axes = Axes(leading, scale_of(self.x.astype(np.float32), leading))
        self.offsets = np.concatenate([[0], np.cumsum(SIZES)])
        self.start = start
        self.paths, self.parts, self.shards = [], [], []
        for number, (low, high) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            path, out = folder / f"{number}.npy", folder / f"index-{number}"
            np.save(path, self.x[low:high])
            encoder = encode.Encoder(self.trained, self.axes, RADIUS, PROBES)
            encode.encode_shard(encoder, path, out)
            self.paths.append(path)
            self.parts.append(index.ListFolder(out, start + int(low)))
            self.shards.append(query_rows.QueryShard(start + int(low), out))

    def join(self, parts: list[index.ListFolder] | None = None) -> pairs.Join:
        snip = Shifted(self.paths, self.offsets, self.start)
        return pairs.Join(
            index=index.SnipIndex(self.trained, parts or self.parts),
            rule=list_queries.CandidateRule(SLACK, SHORT_SLACK, self.axes),
            verifier=verify.Verifier(snip, None, 4.0, 4.0),
            queries=snip,
            exact_queries=True,
            is_copy=None,
            max_partners=10**9,
        )

    def steps(self, x: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Coordinates on the leading axes, in whole numbers throughout."""
        axes = np.rint(self.axes.axes * 1024).astype(np.int64)
        whole, first = (np.rint(v * STEPS).astype(np.int64) @ axes for v in (x, origin))
        factor = np.float32(self.axes.scale / (STEPS * 1024))
        steps = np.rint((whole - first).astype(np.float32) * factor)
        return np.clip(steps, -255, 255).astype(np.int64)

    def expected(self) -> tuple[set, set]:
        """Pairs that must be found, and pairs that may be (rounding at the threshold)."""
        x = self.x.astype(np.float32)
        lists, distance = self.trained.assigner.nearest(x, PROBES)
        margin = self.trained.assigner.margins(lists, distance)
        home = lists[:, 0]
        residual = x - self.trained.centroids[home]
        decoded = self.trained.codec.decode(self.trained.codec.encode(residual))
        vectors = decoded + self.trained.centroids[home]
        error = ((x - vectors).astype(np.float64) ** 2).sum(1)
        whole_x, whole = (np.rint(v * STEPS).astype(np.int64) for v in (x, vectors))
        centroids = self.trained.centroids
        rows = np.array([self.steps(x, c) for c in centroids])
        codes = self.steps(decoded, np.zeros(DIM))
        short_error = ((rows[home, np.arange(len(x))] - codes) ** 2).sum(1)
        must, may = set(), set()
        for i in range(len(x)):
            probed = np.isin(home[:i], lists[i][margin[i] <= RADIUS])
            excess = ((whole_x[i] - whole[:i]) ** 2).sum(1) / STEPS**2 - error[i]
            own = rows[home[:i], i]
            short_excess = ((own - codes[:i]) ** 2).sum(1) - short_error[i]
            worst = excess - SLACK
            near = short_excess <= np.floor(SHORT_SLACK * self.axes.scale**2)
            for j in np.flatnonzero(probed & near & (worst <= 1e-5)):
                may.add((i + self.start, int(j) + self.start))
                if worst[j] <= -1e-5:
                    must.add((i + self.start, int(j) + self.start))
        return must, may


def as_set(found: list[verify.Pairs]) -> set:
    every = verify.Pairs.concatenate(found)
    return set(zip(every.row.tolist(), every.earlier_row.tolist(), strict=True))


@pytest.mark.parametrize("codec", CODECS)
def test_join_equals_brute_force(tmp_path: Path, codec: str) -> None:
    world = World(tmp_path, codec)
    found, _ = pairs.find_pairs(world.join(), world.shards)
    must, may = world.expected()
    assert len(must) > 200
    assert must <= as_set(found) <= may


def test_rows_too_far_for_32_bits_are_no_candidates() -> None:
    x, rows = np.ones((1, 3), np.float32), np.array([[1, 1, 0.9], [1, 1, 0], [-3] * 3], np.float32)
    apart = ((x - rows) ** 2).sum(1) * STEPS**2
    assert apart[0] < 1 << 20 < apart[1] and 1 << 31 < apart[2] < 1 << 32
    query, row, excess = np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.empty(3, np.int32)
    operands = whole_rows(x), Decoded.all(whole_rows(rows)), np.zeros(1, np.int64), 1 << 20
    assert join._decided(*operands, query, row, excess, 0, 3) == 1
    assert row[0] == 0 and excess[0] == np.rint(0.1 * STEPS) ** 2


@pytest.mark.parametrize("products", [50, 1 << 26])
def test_another_device_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: int
) -> None:
    world = World(tmp_path, "PQ8")
    reference, _ = pairs.find_pairs(world.join(), world.shards)
    monkeypatch.setattr(join, "DEVICE_SCORES", products)

    # The path of a GPU, on this processor.
    monkeypatch.setattr(join.ListJoin, "_elsewhere", lambda *_: True)
    found, _ = pairs.find_pairs(world.join(), world.shards)
    for one, other in zip(reference, found, strict=True):
        for name in verify.FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert sum(map(len, found)) > 200


def test_row_ids_beyond_32_bits(tmp_path: Path) -> None:
    start = (1 << 32) + 12_345
    world = World(tmp_path, "PQ8", start)
    index.merge(world.parts, tmp_path / "segment", start + sum(SIZES))
    assert np.load(tmp_path / "segment" / "rows.npy").dtype == np.uint64
    merged = [index.ListFolder(tmp_path / "segment", 0)]
    found, _ = pairs.find_pairs(world.join(parts=merged), world.shards)
    must, may = world.expected()
    assert must <= as_set(found) <= may
    assert min(row for _, row in as_set(found)) >= start


def test_blocks_threads_grouping_passes_and_segments_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, "PQ8")
    reference, _ = pairs.find_pairs(world.join(), world.shards, workers=1)
    index.merge(world.parts[:2], tmp_path / "one", 2000)
    parts = [*world.parts[2:], index.ListFolder(tmp_path / "one", 0)]
    for group, room, workers, together, most in (
        (AT_ONCE, 33, 2, 1, 40),
        (64 * AT_ONCE, 5000, 3, 250, 1000),
    ):
        monkeypatch.setattr(pairs, "QUERIES_TOGETHER", together)
        monkeypatch.setattr(pairs, "ROWS_TOGETHER", 10 * together)
        monkeypatch.setattr(join, "QUERY_BLOCK", group)
        monkeypatch.setattr(join, "ROOM", room)
        monkeypatch.setattr(pairs, "VERIFY_BLOCK", room)
        monkeypatch.setattr(waiting, "VERIFY_AT", 3 * room)
        monkeypatch.setattr(row_file, "LIMIT", 0)  # So that queries are read in passes.
        alone = [
            pairs.find_pairs(world.join(parts=parts), [shard], workers, most)[0][0]
            for shard in world.shards
        ]
        for one, other in zip(reference, alone, strict=True):
            for name in verify.FIELDS:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_index_holds_every_row_once_and_exports(tmp_path: Path) -> None:
    world = World(tmp_path, "PQ16")
    whole = index.SnipIndex(world.trained, world.parts)
    rows = np.concatenate([whole.read_list(n)[0] for n in range(LISTS)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(sum(SIZES)))
    assert (whole.times(sum(SIZES)) == 1).all()
    assert (index.SnipIndex(world.trained, world.parts * 2).times(sum(SIZES)) == 2).all()
    with pytest.raises(BadInputError, match="holds rows beyond"):
        whole.times(sum(SIZES) - 1)
    left_out = np.arange(sum(SIZES)) % 3 == 0
    for number in range(LISTS):
        every, codes = whole.read_list(number)
        some, fewer = whole.read_list(number, left_out)
        np.testing.assert_array_equal(some, every[every % 3 != 0])
        np.testing.assert_array_equal(fewer, codes[every % 3 != 0])
    ours = whole.to_faiss()
    theirs = TrainedIndex.train(world.x.astype(np.float32), LISTS, "PQ16").index
    theirs.add(world.x.astype(np.float32))
    ours.nprobe = theirs.nprobe = 3
    distance, hits = ours.search(world.x[:200].astype(np.float32), 5)
    expected, expected_hits = theirs.search(world.x[:200].astype(np.float32), 5)
    np.testing.assert_array_equal(hits, expected_hits)
    np.testing.assert_allclose(distance, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(2, 30), st.floats(0.05, 1), st.integers(1, 5))
def test_thin_keeps_components_the_nearest_and_the_lowest(
    seed: int, nodes: int, share: float, limit: int
) -> None:
    random = np.random.default_rng(seed)
    ends = np.nonzero(np.tril(random.random((nodes, nodes)) < share, -1))
    row, earlier = (side.astype(np.uint64) for side in ends)
    distance = random.integers(0, 10, len(row))
    every = verify.Pairs(row, earlier, distance.astype(np.float32))
    kept = verify.thin(every, limit)

    def labels(of: verify.Pairs) -> np.ndarray:
        ends = of.row.astype(int), of.earlier_row.astype(int)
        graph = coo_matrix((np.ones(len(of)), ends), (nodes, nodes))
        return connected_components(graph, directed=False)[1]

    for most in range(10):
        before, after = (labels(some[some.distance <= most]) for some in (every, kept))
        assert len(set(zip(before, after, strict=True))) == len(set(before))
    # Thinned by and by, as they are found, they are the same.
    first = random.random(len(row)) < 0.5
    parts = [verify.thin(every[first], limit), every[~first]]
    by_and_by = verify.thin(verify.Pairs.concatenate(parts).ordered(), limit)
    for name in ("row", "earlier_row", "distance"):
        np.testing.assert_array_equal(getattr(by_and_by, name), getattr(kept, name))
    held = set(zip(kept.row.tolist(), kept.earlier_row.tolist(), strict=True))
    for node in range(nodes):
        own = np.flatnonzero(row == node)
        # The star of a large group.
        assert not len(own) or (node, int(earlier[own].min())) in held
        for k in own[np.argsort(distance[own], kind="stable")][:limit]:
            assert (int(row[k]), int(earlier[k])) in held


@pytest.mark.parametrize("lists", [4, 60])
def test_a_large_group_of_near_copies_stays_one_group_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: int
) -> None:
    """In long lists, and spread over many short ones, none of which has many pairs of a row."""
    random = np.random.default_rng(3)
    rows, limit = 3000, 40
    x = random.normal(size=(1, DIM)) + random.normal(size=(rows, DIM)) * 0.02
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    trained = TrainedIndex.train(np.concatenate([make_rows(2), x]).astype(np.float32), lists, "PQ8")
    axes = Axes(leading_axes(x.astype(np.float32), 16), 200.0)
    encoder = encode.Encoder(trained, axes, 2.0, lists)
    shards, parts = [], []
    for number, (low, high) in enumerate(((0, 1800), (1800, rows))):
        np.save(tmp_path / f"{number}.npy", x[low:high])
        out = tmp_path / f"index-{number}"
        encode.encode_shard(encoder, tmp_path / f"{number}.npy", out)
        parts.append(index.ListFolder(out, low))
        shards.append(query_rows.QueryShard(low, out))
    snip = Features([tmp_path / "x.npy"], np.array([0, rows]))
    work = pairs.Join(
        index=index.SnipIndex(trained, parts),
        rule=list_queries.CandidateRule(1.0, 1.0, axes),
        verifier=verify.Verifier(snip, None, 0.1, 0.1),
        queries=snip,
        exact_queries=True,
        is_copy=None,
        max_partners=limit,
    )
    held: list[int] = []

    def thin(all_pairs: verify.Pairs, most: int) -> verify.Pairs:
        held.append(len(all_pairs))
        return verify.thin(all_pairs, most)

    monkeypatch.setattr(listed_pairs, "thin", thin)
    monkeypatch.setattr(listed_pairs, "THIN_AT", 20_000)
    monkeypatch.setattr(listed_pairs, "MERGE_AT", 20_000)
    by_shard = pairs.find_pairs(work, shards)[0]
    found = verify.Pairs.concatenate(by_shard)
    assert len(found) < rows * (limit + 3)
    assert max(held) < rows**2 / 8
    for shard, together in zip(shards, by_shard, strict=True):
        (alone,) = pairs.find_pairs(work, [shard])[0]
        assert np.array_equal(alone.row, together.row)
        assert np.array_equal(alone.earlier_row, together.earlier_row)
    row = rows - 1
    far = verify.distances(snip, np.full(row, row), np.arange(row))
    nearest = np.argsort(far, kind="stable")[:limit]
    assert np.isin(nearest, found.earlier_row[found.row == row].astype(np.int64)).all()
    graph = coo_matrix((np.ones(len(found)), (found.row, found.earlier_row)), shape=(rows, rows))
    assert connected_components(graph, directed=False)[0] == 1


def test_thinning_on_the_way_leaves_what_thinning_at_the_end_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    found = []
    row, earlier = np.nonzero(np.tril(random.random((300, 300)) < 0.3, -1))
    every = verify.Pairs(
        row.astype(np.uint64), earlier.astype(np.uint64), random.random(len(row)).astype(np.float32)
    )
    for at in (1, 1000, 1 << 30):
        monkeypatch.setattr(listed_pairs, "THIN_AT", at)
        listed = listed_pairs.Listed(5, np.array([0, 100, 250], np.uint64))
        for low in range(0, 300, 7):
            listed.add(every[(every.row >= low) & (every.row < low + 7)])
        found.append(listed.by_shard())
    for parts in found[:-1]:
        for one, other in zip(parts, found[-1], strict=True):
            np.testing.assert_array_equal(one.row, other.row)
            np.testing.assert_array_equal(one.earlier_row, other.earlier_row)
    assert sum(map(len, found[-1])) < len(every) / 4
