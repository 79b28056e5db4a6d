"""No command writes over the sources, or into the outputs of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import apart, shards, stations
from snip_assets.engine.apply_bitmap import apply_bitmap
from snip_assets.engine.apply_drop_list import apply_drop_list
from snip_assets.engine.copy_out import copy_out
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.recut import recut
from snip_assets.engine.searcher import open_searcher
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import checksum
from snip_assets.engine.verify_bitmap import verify_bitmap
from snip_assets.options import SAMPLE

from .station_tools import until_published

OUTPUTS = ("drop_list", "deduped_metadata", "duplicate_groups")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources that lie as a run would write its outputs, a run of them, and one that was recut."""
    root = tmp_path_factory.mktemp("apart")
    shutil.copytree(SAMPLE.features, root / "data" / "img_emb")
    shutil.copytree(SAMPLE.metadata, root / "data" / "deduped_metadata")
    layout = Layout(root / "out")
    source = shards.Source(root / "data" / "img_emb", root / "data" / "deduped_metadata")
    shards.register(layout, source)
    until_published(stations.Run(layout, Settings()))
    recut(layout.root, root / "recut", 0.05)
    return root


def _publish(root: Path, to: Path) -> None:
    copy_out(Layout(root / "out"), str(to))


def _recut(root: Path, to: Path) -> None:
    recut(root / "out", to, 0.05)


def _apply(root: Path, to: Path) -> None:
    apply_drop_list(root / "out" / "drop_list", root / "data" / "deduped_metadata", to)


def _apply_bitmap(root: Path, to: Path) -> None:
    bitmap = root / "out" / "dup_bitmap" / "dup_bitmap.npy"
    apply_bitmap(root / "data" / "deduped_metadata", to, bitmap)


def _verify(root: Path, to: Path) -> None:
    bitmap = root / "out" / "dup_bitmap" / "dup_bitmap.npy"
    verify_bitmap(bitmap, open_searcher(root / "out"), to, sample=5)


@pytest.mark.parametrize(
    ("command", "to"),
    [
        *((_publish, to) for to in ("data", "out", "recut", "data/deduped_metadata")),
        *((_recut, to) for to in ("data", "out", "data/deduped_metadata", "data/img_emb")),
        *((_apply, to) for to in ("data/deduped_metadata",)),
        *((_apply_bitmap, to) for to in ("data/deduped_metadata",)),
        *((_verify, to) for to in ("data/deduped_metadata", "data/img_emb")),
        *((c, f"out/{to}") for c in (_publish, _recut, _apply, _apply_bitmap) for to in OUTPUTS),
        (_verify, "out/deduped_metadata"),
    ],
)
def test_it_is_refused_and_nothing_is_touched(
    root: Path, command: Callable[[Path, Path], None], to: str
) -> None:
    before = {p: checksum(p) for p in root.rglob("*") if p.is_file()}
    with pytest.raises(BadInputError, match=r"another (output )?folder|another place"):
        command(root, root / to)
    assert {p: checksum(p) for p in root.rglob("*") if p.is_file()} == before


def test_a_folder_beside_them_is_taken(root: Path, tmp_path: Path) -> None:
    for command in (_publish, _recut, _apply, _apply_bitmap, _verify):
        command(root, tmp_path / command.__name__)
    # The same again goes on.
    _publish(root, tmp_path / "_publish")
    layout, every = Layout(root / "out"), tmp_path / "every"
    stations.metadata(stations.Run(layout, Settings()), shards.load(layout).keys)
    assert copy_out(layout, str(every), every=True).copied > 40
    assert (every / "duplicate_groups" / "groups.parquet").exists()
    assert (
        copy_out(layout, str(every), every=True).copied == copy_out(layout, str(every)).copied == 0
    )


def test_a_path_with_one_slash_of_a_url_is_no_folder(root: Path) -> None:
    with pytest.raises(BadInputError, match="a url has two slashes"):
        copy_out(Layout(root / "out"), "s3:/bucket")
    with pytest.raises(BadInputError, match="s3://bucket/out: a url"):
        apart.from_outputs(Path("s3:/bucket/out"))


def test_rows_of_another_data_set_are_not_searched(root: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.array([0, 700, 2000]))
    with pytest.raises(BadInputError, match="not the row offsets of the run"):
        open_searcher(root / "out", offsets=tmp_path / "other.npy")


def test_who_asks_a_recut_folder_is_told_to_ask_the_run(root: Path) -> None:
    with pytest.raises(shards.StaleOutputError, match="output folder of the run itself"):
        shards.load(Layout(root / "recut"))
