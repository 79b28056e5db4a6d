"""Sources that are moved to another place: a run goes on as if they had not been."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import stations
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.moved import move
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, load, register
from snip_assets.engine.storage.remote_files import as_path
from snip_assets.options import SAMPLE

from .station_tools import until_published


def folders(root: Path) -> Source:
    return Source(root / "img_emb", root / "metadata")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    source = folders(tmp_path / "old")
    shutil.copytree(SAMPLE.features, source.features)
    shutil.copytree(SAMPLE.metadata, source.metadata)
    layout = Layout(tmp_path / "out")
    register(layout, source)
    made(layout)
    return layout


def made(layout: Layout) -> None:
    run = stations.Run(layout, Settings())
    stations.metadata(run, run.registry.keys)
    until_published(run)


def written(layout: Layout) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in layout.root.glob("*/*") if p.is_file()}


def test_nothing_is_made_again(layout: Layout, tmp_path: Path) -> None:
    before, new = written(layout), folders(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(BadInputError, match=r"old/img_emb: no such folder.*snip shards move"):
        register(layout, folders(tmp_path / "old"))
    with pytest.raises(StaleOutputError, match=r"moved there, `snip shards move"):
        register(layout, new)
    assert move(layout, new).source == load(layout).source == new
    assert register(layout, new) == []
    made(layout)
    assert written(layout) == before


def test_a_link_at_the_former_place_is_enough(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").symlink_to(tmp_path / "new")
    for name in ("old", "new"):
        assert register(layout, folders(tmp_path / name)) == []
    assert load(layout).source == folders(tmp_path / "old")


def test_another_data_set_is_not_taken_for_the_moved_one(layout: Layout, tmp_path: Path) -> None:
    new, before = folders(tmp_path / "new"), layout.registry.read_bytes()
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    path = new.features / "img_emb_0002.npy"
    rows = np.load(path)
    for changed, says in ((rows[::-1], "row 0 is not"), (rows[:, :-1].copy(), "is not the shard")):
        np.save(path, changed)
        with pytest.raises(BadInputError, match=says):
            move(layout, new)
    np.save(path, rows)
    one, other = (new.metadata / f"metadata_000{n}.parquet" for n in (0, 1))
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(BadInputError, match="is not the metadata registered for shard 0000"):
        move(layout, new)
    one.write_bytes(held)
    path.unlink()
    with pytest.raises(BadInputError, match="no such file"):
        move(layout, new)
    assert layout.registry.read_bytes() == before


def test_a_registered_shard_that_lost_a_file_is_to_be_put_back(
    layout: Layout, tmp_path: Path
) -> None:
    source = folders(tmp_path / "old")
    (source.features / "img_emb_0001.npy").unlink()
    with pytest.raises(BadInputError, match=r"img_emb_0001\.npy is missing.*put it back"):
        register(layout, source)


def test_the_home_is_found_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert as_path("~/data") == Path("/somewhere/data")
    assert as_path("a/~/data") == Path("a/~/data")
