"""Shards that are taken out again leave what there would be without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import stations
from snip_assets.engine import withdraw as module
from snip_assets.engine.copy_out import copy_out
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.index import SnipIndex, read_segments
from snip_assets.engine.layout import Layout
from snip_assets.engine.recut import recut
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.engine.storage.folders import remove
from snip_assets.engine.withdraw import withdraw
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

from .station_tools import contents, until_published


@pytest.fixture
def source(tmp_path: Path) -> Source:
    found = Source(tmp_path / "img_emb", tmp_path / "metadata")
    for own, folder in ((SAMPLE_FEATURES, found.features), (SAMPLE_METADATA, found.metadata)):
        shutil.copytree(own, folder)
    return found


def published(layout: Layout, source: Source, *keys: str) -> stations.Run:
    register(layout, source, list(keys))
    run = stations.Run(layout, Settings())
    until_published(run)
    return run


def test_what_is_left_is_what_there_would_be_without(tmp_path: Path, source: Source) -> None:
    layout = Layout(tmp_path / "out")
    published(layout, source, "0000", "0001")
    before = contents(layout.root)
    published(layout, source, "0002", "0003")
    assert contents(layout.root).keys() > before.keys()

    gone = withdraw(layout, ["0003", "0002"])
    assert [s.key for s in gone] == ["0002", "0003"]
    assert np.load(layout.row_offsets).tolist() == [0, 500, 1000]
    assert not [*layout.root.glob("*/*0002*"), *layout.root.glob("*/*0003*")]
    # Nothing may be looked up by rows that there are no more.
    run = stations.Run(layout, Settings())
    with pytest.raises(StaleOutputError, match="duplicate_groups"):
        run.version("duplicate_groups")
    until_published(run)
    assert contents(layout.root) == before


def test_other_rows_may_come_under_the_same_key(tmp_path: Path, source: Source) -> None:
    layout = Layout(tmp_path / "out")
    published(layout, source, "0000", "0001")
    withdraw(layout, ["0001"])
    for name in ("img_emb/img_emb_{}.npy", "metadata/metadata_{}.parquet"):
        shutil.copy(tmp_path / name.format("0002"), tmp_path / name.format("0001"))
    published(layout, source, "0001")
    again = Layout(tmp_path / "again")
    shutil.copytree(layout.snip_model, again.snip_model)
    published(again, source, "0000", "0001")
    assert contents(layout.root) == contents(again.root)


@pytest.mark.parametrize("after", ["c", "cb"])
def test_shards_that_come_again_elsewhere_are_merged_again(
    tmp_path: Path, source: Source, after: str
) -> None:
    own = Source(tmp_path / "own" / "img_emb", tmp_path / "own" / "metadata")
    rows = np.concatenate([np.load(p) for p in sorted(source.features.glob("*.npy"))])
    table = pq.read_table(source.metadata)
    # Each is half copies of the other half, and so much smaller that it has a segment of its own.
    for folder in (own.features, own.metadata):
        folder.mkdir(parents=True)
    for key, start, count in (("a", 0, 600), ("b", 700, 150), ("c", 900, 60)):
        place = start + np.arange(count) % (count // 2)
        np.save(own.features / f"img_emb_{key}.npy", rows[place])
        pq.write_table(table.take(place), own.metadata / f"metadata_{key}.parquet")
    layout, expected = Layout(tmp_path / "out"), Layout(tmp_path / "expected")
    published(layout, own, "a")
    shutil.copytree(layout.root, expected.root)
    for key in "bc":
        published(layout, own, key)
    assert len(read_segments(layout.snip_index)) == 3
    withdraw(layout, ["b", "c"])
    for key in after:
        published(layout, own, key)
        published(expected, own, key)
    index = SnipIndex.open(layout)
    assert (index.times(index.rows) == 1).all()
    assert contents(layout.root) == contents(expected.root)


def test_one_that_was_stopped_goes_on(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Layout(tmp_path / "whole")
    published(whole, source, "0000", "0001")
    for steps in (0, 1, 4, 7):
        layout = Layout(tmp_path / f"out{steps}")
        shutil.copytree(whole.root, layout.root)
        left = [None] * steps

        def stopped(path: Path, left: list[None] = left) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            remove(path)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, "remove", stopped)
            withdraw(layout, ["0001"])
        assert [s.key for s in withdraw(layout, ["0001"])] == ["0001"]
        assert not [*layout.root.glob("*/*0001*"), *layout.root.glob("dup*_*/*.np*")]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["0001"], "0003 was registered after it.*all from it on .0001 0003"),
        (["0000", "0001", "0003"], "no shard would be left"),
        (["0002"], "not registered"),
    ],
)
def test_row_ids_of_others_stay(tmp_path: Path, source: Source, keys: list[str], says: str) -> None:
    layout = Layout(tmp_path / "out")
    register(layout, source, ["0000", "0001", "0003"])
    with pytest.raises(BadInputError, match=says):
        withdraw(layout, keys)
    assert len(np.load(layout.row_offsets)) == 4


def test_what_was_made_of_it_elsewhere_is_not_taken_for_the_rest(
    tmp_path: Path, source: Source
) -> None:
    layout, cut, copy = Layout(tmp_path / "out"), tmp_path / "cut", tmp_path / "copy"
    keys = ("0000", "0001", "0002", "0003")
    published(layout, source, *keys)
    recut(layout.root, cut, 0.05)
    copy_out(layout, str(copy))
    withdraw(layout, keys[1:])
    published(layout, source, "0003")
    recut(layout.root, cut, 0.05)
    recut(layout.root, tmp_path / "again", 0.05)
    assert contents(cut) == contents(tmp_path / "again")
    with pytest.raises(BadInputError, match=r"metadata_0001\.parquet: of a shard that this run"):
        copy_out(layout, str(copy))
    for path in copy.rglob("*000[12]*"):
        path.unlink()
    copy_out(layout, str(copy))
    assert contents(copy).items() <= contents(layout.root).items()
