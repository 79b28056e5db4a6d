"""The stations on the sample: exact, resumable, the same bytes for any threads and grouping."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import audit, shards, stations, truth
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import checksum, read_manifest

from .station_tools import (
    MADE,
    contents,
    found_and_true,
    paired,
    sampled,
    start,
    until_pairs,
    until_published,
    write_shard,
)

VIEWS = pytest.mark.skipif(
    int(pa.__version__.split(".")[0]) < 21, reason="This pyarrow writes no views of text."
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> stations.Run:
    run = start(tmp_path_factory.mktemp("done"), workers=2)
    until_pairs(run)
    return run


def pair_bytes(run: stations.Run) -> list[str]:
    return [checksum(run.layout.duplicate_pairs(key)) for key in run.registry.keys]


def test_threads_and_grouping_give_the_same_bytes(done: stations.Run, tmp_path: Path) -> None:
    other = start(tmp_path, workers=1)
    until_pairs(other, [["0002"], ["0000", "0003"], ["0001"]])
    assert pair_bytes(other) == pair_bytes(done)
    index = [checksum(p) for p in sorted(done.layout.snip_index.rglob("*.npy"))]
    assert [checksum(p) for p in sorted(other.layout.snip_index.rglob("*.npy"))] == index


def test_pairs_are_as_right_when_less_is_asked_for(done: stations.Run) -> None:
    nearer = stations.Run(done.layout, Settings(max_distance=0.03))
    found = audit.pair_precision(nearer, 10_000, 0)
    assert found.trials > 500 and found.successes == found.trials


def test_a_second_run_touches_nothing(done: stations.Run) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.layout.root.rglob("*") if p.is_file()}
    until_pairs(stations.Run(done.layout, done.settings))
    after = {p: p.stat().st_mtime_ns for p in done.layout.root.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if before.get(p) != t and p.suffix != ".lock"} == {}


def test_an_arrival_leaves_earlier_pairs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, ["0000", "0001", "0002"])
    until_pairs(run)
    before = pair_bytes(run)
    run = start(tmp_path, ["0003"])
    versions = {k: read_manifest(run.layout.duplicate_pairs(k)) for k in ("0000", "0001", "0002")}
    until_pairs(run)
    assert pair_bytes(run)[:3] == before
    for key, manifest in versions.items():
        assert read_manifest(run.layout.duplicate_pairs(key)) == manifest
    found = audit.query_recall(run, 2000, 0)
    assert found.estimate >= 0.99
    with monkeypatch.context() as patch:
        patch.setattr(truth, "exact_neighbours", None)
        assert audit.last_recall(run, 2000, 0) == found
        with pytest.raises(TypeError):
            audit.last_recall(run, 2000, 1)


@pytest.mark.parametrize("rule", ["neighbours", "largest(original_width*original_height)"])
def test_an_arrival_leaves_the_files_of_a_whole_run(tmp_path: Path, rule: str) -> None:
    run = start(tmp_path / "grown", ["0000", "0001"], keep=rule)
    until_published(run)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "grown", whole)
    for path in [path for name in MADE for path in whole.glob(f"{name}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for keys in (["0002"], ["0003"]):
        until_published(start(tmp_path / "grown", keys, keep=rule))
    until_published(start(whole, ["0002", "0003"], keep=rule))
    assert contents(tmp_path / "grown") == contents(whole) and len(contents(whole)) > 12


@pytest.mark.parametrize("tier", ["snip", "codes"])
def test_coarser_tiers_work_without_raw_features(
    done: stations.Run, tmp_path: Path, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some candidates are decided about list by list, as many are, and some later.
    monkeypatch.setattr("snip_assets.engine.pairs.VERIFY_BLOCK", 8)
    root = tmp_path / "out"
    shutil.copytree(done.layout.root, root)
    run = stations.Run(Layout(root), replace(done.settings, tier=tier, max_partners=2))
    run.registry = replace(
        run.registry,
        shards=tuple(replace(s, features=tmp_path / "gone.npy") for s in run.registry.shards),
    )
    if tier == "codes":
        shutil.rmtree(run.layout.root / "snip_features")
    made = stations.duplicate_pairs(run, run.registry.keys)
    assert {m.facts["tier"] for m in made.values()} == {tier}
    true = {
        (int(a), int(b))
        for key in done.registry.keys
        for a, b in zip(*_ends(done, key), strict=True)
    }
    found = {
        (int(a), int(b)) for key in run.registry.keys for a, b in zip(*_ends(run, key), strict=True)
    }
    both = len(true & found)
    assert both / len(true) > (0.9 if tier == "snip" else 0.75)
    assert both / len(found) > (0.9 if tier == "snip" else 0.6)
    # Else the groups would leave pairs out.
    pairs = [read_pairs(run.layout.duplicate_pairs(key)) for key in run.registry.keys]
    assert max(p.distance.max() for p in pairs) <= np.float32(run.settings.max_distance)


def _ends(run: stations.Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = read_pairs(run.layout.duplicate_pairs(key))
    return pairs.row, pairs.earlier_row


def test_a_given_net_replaces_training(done: stations.Run, tmp_path: Path) -> None:
    weights = done.layout.snip_model / "model.safetensors"
    run = start(tmp_path / "one", model=str(weights))
    stations.clip_features(run, run.registry.keys)
    assert stations.snip_model(run).facts["method"] == "file"
    made = stations.snip_features(run, ["0001"])["0001"]
    expected = read_manifest(done.layout.snip_features("0001"))
    assert expected is not None and made.version == expected.version
    with pytest.raises(BadInputError, match="no such file"):
        stations.snip_model(start(tmp_path / "two", model="nowhere.pth"))


def test_the_published_net_is_the_one_that_was_fetched_last(
    done: stations.Run, tmp_path: Path
) -> None:
    run = start(tmp_path, model="published")
    folder = run.layout.published
    with pytest.raises(BadInputError, match="snip fetch model --out"):
        stations.snip_model(run)
    folder.mkdir()
    (folder / "model.pth").write_bytes(b"PK an older one")
    os.utime(folder / "model.pth", (0, 0))
    weights = done.layout.snip_model / "model.safetensors"
    shutil.copy(weights, folder / "laion2b.safetensors")
    stations.clip_features(run, run.registry.keys)
    assert stations.snip_model(run).facts["why"] == "weights of laion2b.safetensors"


def test_pairs_of_a_smaller_threshold_are_told(done: stations.Run) -> None:
    wider = stations.Run(done.layout, replace(done.settings, max_distance=0.2))
    with pytest.raises(StaleOutputError, match=r"has pairs up to 0\.1 only.* not 0\.2"):
        stations.duplicate_groups(wider)
    with pytest.raises(StaleOutputError, match=r"searched within 0\.1 only"):
        audit.query_recall(wider, 100, 0)


def test_a_station_says_what_must_come_first(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(StaleOutputError, match="snip_model"):
        stations.trained_index(run)


@pytest.mark.parametrize(
    "sizes", [[1], [0, 3], [300, 5]], ids=["one row", "an empty shard", "copies of one row"]
)
def test_tiny_data_sets(tmp_path: Path, sizes: list[int]) -> None:
    row = np.random.default_rng(0).normal(size=24)
    for folder in ("img_emb", "metadata"):
        (tmp_path / folder).mkdir()
    for number, size in enumerate(sizes):
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", np.tile(row, (size, 1)))
        table = pa.table({"URL": pa.array([f"{number}/{i}" for i in range(size)], pa.string())})
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{number}.parquet")
    layout = Layout(tmp_path / "out")
    shards.register(layout, shards.Source(tmp_path / "img_emb", tmp_path / "metadata"))
    run = stations.Run(layout, Settings())
    until_pairs(run)
    stations.duplicate_groups(run)
    assert stations.dup_bitmap(run).facts["dropped"] == sum(sizes) - 1


def test_pairs_beyond_all_probes_are_lost_and_nothing_else(tmp_path: Path) -> None:
    one, apart = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 2)))[0].T
    for row, x in enumerate((one, one + np.sqrt(0.05) * apart)):
        write_shard(tmp_path, str(row), x[None].astype(np.float32))
    shards.register(Layout(tmp_path / "out"), shards.Source(tmp_path, tmp_path))
    run = stations.Run(Layout(tmp_path / "out"), Settings(max_probes=1))
    until_pairs(run)
    assert run.calibration().recall == 0


@pytest.mark.parametrize("seed", range(3))
def test_few_rows_with_few_pairs_lose_none(tmp_path: Path, seed: int) -> None:
    write_shard(tmp_path, "0000", sampled(700, seed))
    run = paired(tmp_path)
    found, true = found_and_true(run)
    assert true and true <= found


@pytest.mark.parametrize("seed", range(6))
def test_of_a_few_dozen_rows_no_pair_is_lost(tmp_path: Path, seed: int) -> None:
    """Two dense groups, whose pairs lie on both sides of the threshold."""
    random = np.random.default_rng(seed)
    x = np.repeat(random.normal(size=(2, 20)), 12, 0) + 0.23 * random.normal(size=(24, 20))
    write_shard(tmp_path, "0000", x.astype(np.float32))
    run = paired(tmp_path)
    found, true = found_and_true(run)
    assert 0 < len(true) < 132 and found == true


def test_pairs_are_found_again_when_raw_rows_change_and_their_codes_do_not(tmp_path: Path) -> None:
    x = np.unique(sampled(400, 0), axis=0)[:200].astype(np.float32)
    for key in ("0000", "0001"):
        write_shard(tmp_path, key, x)
    layout = Layout(tmp_path / "out")
    shards.register(layout, shards.Source(tmp_path, tmp_path))
    until_pairs(run := stations.Run(layout, Settings()))
    before = read_manifest(layout.duplicate_pairs("0001"))
    assert before and before.facts["exact_copies"] == 200
    write_shard(tmp_path, "0001", x * np.float32(2))
    until_pairs(run := stations.Run(layout, Settings()))
    after = read_manifest(run.layout.duplicate_pairs("0001"))
    assert after and after.facts["exact_copies"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.astype(np.float32), "is float32, the other shards float16"),
        (lambda x: x.astype(">f2"), "in the order of this machine"),
    ],
)
def test_shards_of_another_type_are_refused(tmp_path: Path, change, said: str) -> None:
    x = sampled(20, 0)
    write_shard(tmp_path, "0000", x)
    write_shard(tmp_path, "0001", change(x))
    with pytest.raises(BadInputError, match=f"img_emb_0001.*{said}"):
        shards.register(Layout(tmp_path / "out"), shards.Source(tmp_path, tmp_path))


@pytest.mark.parametrize("length", [1e20, 1e-25])
def test_lengths_that_float32_cannot_square_are_named(tmp_path: Path, length: float) -> None:
    write_shard(tmp_path, "0000", sampled(20, 0).astype(np.float32) * np.float32(length))
    layout = Layout(tmp_path / "out")
    shards.register(layout, shards.Source(tmp_path, tmp_path))
    with pytest.raises(BadInputError, match=r"row 0 is of length .*divide all features"):
        stations.clip_features(stations.Run(layout, Settings()), ["0000"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            lambda n: pa.table([pa.array(["a"] * n), pa.array(["b"] * n)], names=["url", "url"]),
            "2 columns are named url",
        ),
        (lambda n: pa.table({"url": [["a"]] * n}), "column url holds list"),
        pytest.param(
            lambda n: pa.table({"tags": pa.array([["a"]] * n, pa.list_(pa.string_view()))}),
            "column tags holds list<.*without views",
            marks=VIEWS,
        ),
    ],
)
def test_texts_that_could_not_be_read_later_are_refused_first(
    tmp_path: Path, table, said: str
) -> None:
    x = sampled(20, 0)
    write_shard(tmp_path, "0000", x)
    pq.write_table(table(len(x)), tmp_path / "metadata_0000.parquet")
    layout = Layout(tmp_path / "out")
    shards.register(layout, shards.Source(tmp_path, tmp_path))
    with pytest.raises(BadInputError, match=f"metadata_0000.parquet: {said}"):
        stations.metadata(stations.Run(layout, Settings()), ["0000"])


def test_a_keep_rule_that_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is not understood"):
        start(tmp_path, keep="largest(width")
    run = start(tmp_path, ["0000"], keep="largest(width)")
    with pytest.raises(BadInputError, match=r"metadata_0000\.parquet: no column 'width'"):
        stations.metadata(run, ["0000"])
    run = start(tmp_path, ["0000"], keep="first")
    stations.metadata(run, ["0000"])
    run = start(tmp_path, keep="largest(width)")
    with pytest.raises(BadInputError, match=r"metadata_0000\.parquet: no column 'width'"):
        stations.metadata(run, ["0001"])


@VIEWS
def test_views_of_text_are_text(tmp_path: Path) -> None:
    x = sampled(60, 0)
    write_shard(tmp_path, "0000", np.concatenate([x, x]))
    urls = pa.array([f"http://x/{row}" for row in range(120)], pa.string_view())
    source = pa.table({"url": urls, "md5": pa.array([b"h"] * 120, pa.binary_view())})
    pq.write_table(source, tmp_path / "metadata_0000.parquet")
    layout = Layout(tmp_path / "out")
    shards.register(layout, shards.Source(tmp_path, tmp_path))
    until_pairs(run := stations.Run(layout, Settings(keep="first")))
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    stations.deduped_metadata(run, ["0000"])
    stations.drop_list(run, ["0000"])
    kept = pq.read_table(layout.deduped_metadata("0000"))
    assert kept.schema.equals(source.schema)
    stays = ~np.load(layout.dup_bitmap / "dup_bitmap.npy")
    assert kept["url"].to_pylist() == [f"http://x/{row}" for row in np.flatnonzero(stays)]
    gone = pq.read_table(layout.drop_list("0000"))
    assert gone["url"].to_pylist() == [f"http://x/{row}" for row in np.flatnonzero(~stays)]
