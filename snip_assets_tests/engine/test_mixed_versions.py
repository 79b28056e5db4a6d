"""Outputs that do not belong together are refused by name, and the cure cures."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from snip_assets.engine import index, shards, stations
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.stations import duplicates, features, publish
from snip_assets.engine.stations import index as index_stations
from snip_assets.engine.storage.files import checksum, manifest_path, read_manifest
from snip_assets.options import SAMPLE

from .station_tools import until_pairs

KEYS = ["0000", "0001", "0002", "0003"]
ORDER = (
    *("snip_model", "snip_features", "trained_index", "index_shards", "snip_index"),
    *("duplicate_pairs", "duplicate_groups", "dup_bitmap", "deduped_metadata", "drop_list"),
)
WHOLE = ("snip_model", "trained_index", "snip_index", "duplicate_groups", "dup_bitmap")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("done")
    for name in ("img_emb", "metadata"):
        shutil.copytree(SAMPLE.features.parent / name, root / name)
    shards.register(Layout(root / "out"), shards.Source(root / "img_emb", root / "metadata"))
    until_pairs(stations.Run(Layout(root / "out"), Settings()))
    return root


@pytest.fixture
def run(done: Path, tmp_path: Path) -> stations.Run:
    """A copy of all outputs; the sources are the module's."""
    shutil.copytree(done / "out", tmp_path / "out")
    return stations.Run(Layout(tmp_path / "out"), Settings())


def other(run: stations.Run, **changes: object) -> stations.Run:
    return stations.Run(run.layout, replace(run.settings, **changes))


def all_pairs(run: stations.Run) -> list[str]:
    return [checksum(run.layout.duplicate_pairs(key)) for key in KEYS]


@pytest.mark.parametrize("changes", [{"codec": "PQ4"}, {"lists": 16}, {"seed": 9}])
def test_codes_of_two_trained_indices_are_not_merged(run: stations.Run, changes: dict) -> None:
    run = other(run, **changes)
    if "seed" in changes:
        stations.snip_model(run)
        stations.snip_features(run, KEYS)
    stations.trained_index(run)
    stations.index_shards(run, KEYS[3:])
    with pytest.raises(StaleOutputError, match="index_shards 0000 was made from another trained"):
        stations.snip_index(run)
    stations.index_shards(run, KEYS)
    stations.snip_index(run)
    stations.duplicate_pairs(run, KEYS)


def test_an_index_is_not_trained_on_the_features_of_another_net(run: stations.Run) -> None:
    run = other(run, seed=9)
    stations.snip_model(run)
    with pytest.raises(StaleOutputError, match="snip_features 0000 was made from another snip_mod"):
        stations.trained_index(run)
    stations.snip_features(run, KEYS)
    with pytest.raises(StaleOutputError, match="trained_index was made from another snip_model"):
        stations.index_shards(run, KEYS)


def test_pairs_are_not_made_with_an_index_of_other_codes(run: stations.Run) -> None:
    run = other(run, lists=16)
    stations.trained_index(run)
    stations.index_shards(run, KEYS)
    with pytest.raises(StaleOutputError, match="materialise snip_index"):
        stations.duplicate_pairs(run, KEYS)


def test_an_earlier_file_that_was_exchanged_costs_no_pairs(run: stations.Run) -> None:
    before, path = all_pairs(run), run.registry["0001"].features
    whole, times = path.read_bytes(), path.stat()
    manifest_path(run.layout.duplicate_pairs("0003")).unlink()
    np.save(path, np.load(path)[::-1])
    try:
        for station in (stations.duplicate_pairs, stations.snip_features):
            with pytest.raises(BadInputError, match=r"img_emb_0001\.npy: has other rows"):
                station(run, KEYS)
        for station in (stations.snip_model, stations.trained_index):
            with pytest.raises(BadInputError, match=r"img_emb_0001\.npy: has other rows"):
                station(run, again=True)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    stations.duplicate_pairs(run, KEYS)
    assert all_pairs(run) == before


def test_a_damaged_segment_is_merged_again(run: stations.Run) -> None:
    (codes,) = run.layout.snip_index.glob("segment-*/codes.npy")
    whole = checksum(codes)
    for damage in (lambda: codes.write_bytes(codes.read_bytes()[:-1] + b"\xff"), codes.unlink):
        damage()
        with pytest.raises(StaleOutputError, match="snip_index is damaged"):
            run.version("snip_index")
        manifest_path(run.layout.snip_index).unlink()
        stations.snip_index(run)
        assert checksum(codes) == whole


def test_groups_of_pairs_that_were_not_searched_for_are_refused(run: stations.Run) -> None:
    with pytest.raises(StaleOutputError, match=r"pairs up to 0\.1 only"):
        stations.duplicate_groups(other(run, max_distance=0.2))


def test_a_file_with_another_time_is_read_once(
    run: stations.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    hash_shard = features.copies.hash_shard
    monkeypatch.setattr(
        features.copies,
        "hash_shard",
        lambda source, *rest: (read.append(source.name), hash_shard(source, *rest))[1],
    )
    before = all_pairs(run)
    for key in KEYS[:3]:
        os.utime(run.registry[key].features)
    for _ in range(2):
        manifest_path(run.layout.duplicate_pairs("0003")).unlink()
        stations.duplicate_pairs(run, ["0003"])
    assert all_pairs(run) == before
    assert sorted(read) == [f"img_emb_{key}.npy" for key in KEYS[:3]]


def test_lost_row_offsets_are_written_again(run: stations.Run) -> None:
    whole = run.layout.row_offsets.read_bytes()
    for damage in (run.layout.row_offsets.unlink, lambda: np.save(run.layout.row_offsets, [0, 1])):
        damage()
        assert shards.register(run.layout, run.registry.source) == []
        assert run.layout.row_offsets.read_bytes() == whole


def test_rows_that_are_exchanged_while_they_are_read_do_not_pass(
    run: stations.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.registry["0001"].features
    whole, times = path.read_bytes(), path.stat()
    before = checksum(run.layout.snip_features("0001"))
    manifest_path(run.layout.snip_features("0001")).unlink()
    compress = features.compress_shard

    def exchanged(*given: object) -> dict:
        np.save(path, np.load(path)[::-1])
        return compress(*given)

    monkeypatch.setattr(features, "compress_shard", exchanged)
    try:
        with pytest.raises(BadInputError, match="has other rows"):
            stations.snip_features(run, ["0001"])
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.undo()
    stations.snip_features(run, ["0001"])
    assert checksum(run.layout.snip_features("0001")) == before


def test_a_source_that_changes_meanwhile_is_not_sealed(
    run: stations.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.registry["0001"].features
    times = path.stat()
    output = run.layout.clip_features("0001")
    manifest_path(output).unlink()
    hash_shard = features.copies.hash_shard

    def touched(*given: object) -> dict:
        found = hash_shard(*given)
        os.utime(path)
        return found

    monkeypatch.setattr(features.copies, "hash_shard", touched)
    try:
        with pytest.raises(BadInputError, match="was changed while it was read"):
            stations.clip_features(run, ["0001"])
        assert not manifest_path(output).exists()
    finally:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _other_net(run: stations.Run) -> None:
    stations.snip_model(other(run, seed=9))


def _other_index(run: stations.Run) -> None:
    stations.trained_index(other(run, seed=9))


def _other_codes(run: stations.Run) -> None:
    _other_index(run)
    stations.index_shards(other(run, seed=9), KEYS)


def _other_lists(run: stations.Run) -> None:
    stations.trained_index(other(run, lists=20))
    stations.index_shards(other(run, lists=20), KEYS)


def _other_pairs(run: stations.Run) -> None:
    stations.duplicate_pairs(other(run, max_distance=0.02), KEYS)


def _other_groups(run: stations.Run) -> None:
    stations.duplicate_groups(other(run, keep="first"))


@pytest.mark.parametrize(
    ("station", "module", "work", "meanwhile"),
    [
        ("snip_features", features, "compress_shard", _other_net),
        ("trained_index", index_stations, "save_npy", _other_net),
        ("index_shards", index_stations, "encode_shard", _other_index),
        ("snip_index", index, "merge", _other_codes),
        ("duplicate_pairs", duplicates, "_near", _other_codes),
        ("duplicate_pairs", duplicates, "_near", _other_lists),
        ("duplicate_groups", duplicates, "group_rows", _other_pairs),
        ("dup_bitmap", duplicates, "publish_bitmap", _other_groups),
        ("deduped_metadata", publish, "publish_metadata", _other_groups),
        ("drop_list", publish, "publish_drop_list", _other_groups),
    ],
)
def test_what_another_run_makes_again_meanwhile_is_not_taken_for_the_former(
    run: stations.Run,
    monkeypatch: pytest.MonkeyPatch,
    station: str,
    module: ModuleType,
    work: str,
    meanwhile: Callable[[stations.Run], None],
) -> None:
    names = ORDER[: ORDER.index(station) + 1]

    def make(name: str) -> None:
        arguments = () if name in WHOLE else (KEYS,)
        getattr(stations, name)(stations.Run(run.layout, run.settings), *arguments)

    def contents() -> list[str]:
        place = run.layout.output(station, KEYS[0])
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        return [checksum(path) for path in files if not path.name.endswith(".manifest.json")]

    for name in names:
        make(name)
    before, original = contents(), getattr(module, work)
    manifest_path(run.layout.output(station, KEYS[0])).unlink()
    if station == "snip_index":
        shutil.rmtree(run.layout.snip_index)
    calls = []

    def exchanged(*given: Any, **more: Any) -> Any:
        if not calls:
            calls.append(0)
            meanwhile(run)
        return original(*given, **more)

    monkeypatch.setattr(module, work, exchanged)
    with pytest.raises(
        (BadInputError, StaleOutputError), match=r"made again|was changed while|was made from"
    ):
        make(station)
    # The former ones come back as they were, and must not bring back what was made meanwhile.
    for name in names:
        make(name)
    assert contents() == before


def test_what_a_killed_merge_left_is_removed(run: stations.Run) -> None:
    folder = run.layout.snip_index
    version = read_manifest(folder).version
    (folder / ".tmp-segments.json-0123456789ab").write_text("[")
    (folder / ".tmp-segment-0-0123456789ab").mkdir()
    manifest_path(folder).unlink()
    assert stations.snip_index(run).version == version
    assert not [*folder.glob(".tmp-*")]


def test_one_letter_of_a_manifest_is_told(run: stations.Run) -> None:
    path = manifest_path(run.layout.duplicate_pairs("0001"))
    path.write_text(path.read_text().replace('"pairs"', '"pairr"'))
    with pytest.raises(StaleOutputError, match=r"0001\.parquet\.manifest\.json: damaged .* digest"):
        stations.duplicate_groups(run)


def test_copies_are_those_of_the_rows_there_now(tmp_path: Path) -> None:
    for name in ("img_emb", "metadata"):
        shutil.copytree(SAMPLE.features.parent / name, tmp_path / name)
    own = Layout(tmp_path / "own")
    shards.register(own, shards.Source(tmp_path / "img_emb", tmp_path / "metadata"))
    again = stations.Run(own, Settings())
    stations.clip_features(again, KEYS)
    path, pair = again.registry["0000"].features, (np.array([1]), np.array([0]))
    raw = np.load(path)
    copies = again.copies_by_hash()
    assert copies is not None and not copies(*pair)
    raw[1] = raw[0]
    np.save(path, raw)
    stations.clip_features(again, KEYS)
    copies = again.copies_by_hash()
    assert copies is not None and copies(*pair)
