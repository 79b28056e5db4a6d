"""Each check on a finished run with one file damaged: it fails, and names the place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest

from snip_assets import automation, checks
from snip_assets.definitions import build_defs
from snip_assets.engine import shards, stations
from snip_assets.engine.moved import move
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage import comparisons, remote_files
from snip_assets.engine.storage.files import manifest_path, read_manifest
from snip_assets.engine.storage.remote_files import as_path
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA
from snip_assets.resources import DataSet

from .engine.station_tools import until_pairs

KEYS, ROWS = ("0000", "0001"), 150


def data_in(folder: Path) -> DataSet:
    source = Source(folder / "img_emb", folder / "metadata")
    return DataSet.of(source, folder / "out", Settings())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 300 rows of the sample, with what it was made from."""
    folder = tmp_path_factory.mktemp("finished")
    data = data_in(folder)
    for place in (data.source.features, data.source.metadata):
        place.mkdir()
    for key in KEYS:
        features = np.load(SAMPLE_FEATURES / f"img_emb_{key}.npy")[:ROWS]
        np.save(data.source.features / f"img_emb_{key}.npy", features)
        name = f"metadata_{key}.parquet"
        pq.write_table(
            pq.read_table(SAMPLE_METADATA / name).slice(0, ROWS), data.source.metadata / name
        )
    shards.register(data.layout, data.source)
    run, keys = data.run(), list(KEYS)
    stations.metadata(run, keys)
    until_pairs(run)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    stations.deduped_metadata(run, keys)
    stations.drop_list(run, keys)
    return folder


@pytest.fixture
def data(finished: Path, tmp_path: Path) -> DataSet:
    """A copy of the run, with a registry that names the copied source."""
    copied = data_in(shutil.copytree(finished, tmp_path / "copy"))
    copied.layout.registry.unlink()
    shards.register(copied.layout, copied.source)
    return copied


def results(data: DataSet, job: str, *steps: str) -> dict[str, dg.AssetCheckEvaluation]:
    """What a job of checks says, by asset."""
    definition = build_defs({"data": data}).resolve_job_def(job)
    result = definition.execute_in_process(op_selection=list(steps) or None, raise_on_error=False)
    return {e.asset_key.to_user_string(): e for e in result.get_asset_check_evaluations()}


def test_features_at_a_url_are_looked_at_in_a_process_that_makes_nothing(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url: Any = as_path("memory://checked")
    for path in data.source.features.iterdir():
        (url / path.name).write_bytes(path.read_bytes())
    move(data.layout, Source(url, data.source.metadata))
    monkeypatch.setattr(remote_files, "_cache", None)
    try:
        assert results(data, "verify")["clip_features"].passed
    finally:
        url.fs.store.clear()


def a_zero_row(data: DataSet) -> str:
    path = data.source.features / "img_emb_0001.npy"
    _set(path, 17, 0)
    return f"{path}: row 17"


def an_infinite_number(data: DataSet) -> str:
    path = data.source.features / "img_emb_0000.npy"
    _set(path, (149, 3), np.inf)
    return f"{path}: row 149"


def a_vector_that_is_not_a_number(data: DataSet) -> str:
    _set(data.layout.snip_features("0001"), 17, np.nan)
    return "shard 0001: row 17"


def a_vector_too_long(data: DataSet) -> str:
    path = data.layout.snip_features("0000")
    _set(path, 17, np.load(path)[17] * 1.01)
    return "shard 0000: row 17"


def a_row_twice_in_place_of_the_next(data: DataSet) -> str:
    (rows,) = data.layout.snip_index.glob("segment-*/rows.npy")
    _set(rows, np.load(rows) == ROWS + 17, ROWS + 16)
    return "shard 0001: row 16; shard 0001: row 17"


def a_short_bitmap(data: DataSet) -> str:
    path = data.layout.dup_bitmap / "dup_bitmap.npy"
    np.save(path, np.load(path)[:-1])
    return "299 entries for 300 rows"


def a_long_bitmap(data: DataSet) -> str:
    path = data.layout.dup_bitmap / "dup_bitmap.npy"
    np.save(path, np.append(np.load(path), False))
    return "301 entries for 300 rows"


def a_kept_row_lost(data: DataSet) -> str:
    path = data.layout.deduped_metadata("0001")
    kept = pq.read_table(path)
    pq.write_table(kept.slice(1), path)
    return f"shard 0001: {len(kept) - 1} kept + {ROWS - len(kept)} dropped != {ROWS}"


def a_dropped_row_explained_by_a_dropped_one_nearby(data: DataSet) -> str:
    stays = _stays(data)
    pairs = read_pairs(data.layout.duplicate_pairs("0001"))
    both = ~stays[pairs.row] & ~stays[pairs.earlier_row]
    row, near = pairs.row[both][0], pairs.earlier_row[both][0]
    return _explain(data, row, near)


def a_dropped_row_explained_by_one_far_away(data: DataSet) -> str:
    stays = _stays(data)
    labels = np.load(data.layout.duplicate_groups / "labels.npy")
    row = np.flatnonzero(~stays)[0]
    far = np.flatnonzero(stays & (labels != labels[row]))[0]
    return _explain(data, row, far)


def _stays(data: DataSet) -> np.ndarray:
    kept_row = np.load(data.layout.duplicate_groups / "kept_row.npy")
    return kept_row == np.arange(len(kept_row))


def _explain(data: DataSet, row: int, other: int) -> str:
    """Have a dropped row explained by another one; what must be said then."""
    dropped = np.count_nonzero(~_stays(data))
    _set(data.layout.duplicate_groups / "kept_row.npy", row, other)
    return f"1 of {dropped} dropped rows do not resemble their kept row"


def _set(path: Path, where: Any, value: Any) -> None:
    array = np.load(path)
    array[where] = value
    np.save(path, array)


@pytest.mark.parametrize(
    ("asset", "check", "damage"),
    [
        ("clip_features", "finite_and_not_zero", a_zero_row),
        ("clip_features", "finite_and_not_zero", an_infinite_number),
        ("snip_features", "unit_length", a_vector_that_is_not_a_number),
        ("snip_features", "unit_length", a_vector_too_long),
        ("snip_index", "every_row_once", a_row_twice_in_place_of_the_next),
        ("dup_bitmap", "bitmap_has_all_rows", a_short_bitmap),
        ("dup_bitmap", "bitmap_has_all_rows", a_long_bitmap),
        ("dup_bitmap", "no_orphans", a_dropped_row_explained_by_a_dropped_one_nearby),
        ("dup_bitmap", "no_orphans", a_dropped_row_explained_by_one_far_away),
        ("deduped_metadata", "kept_and_dropped_add_up", a_kept_row_lost),
    ],
)
def test_damage_fails_the_check_which_names_the_place(
    data: DataSet, asset: str, check: str, damage: Callable[[DataSet], str]
) -> None:
    assert results(data, "verify", f"{asset}_{check}")[asset].passed
    said = damage(data)
    failed = results(data, "verify", f"{asset}_{check}")[asset]
    assert not failed.passed and failed.severity is dg.AssetCheckSeverity.ERROR
    assert failed.description == said


def test_a_flipped_bit_fails_the_checksums_of_its_asset_alone(data: DataSet) -> None:
    path = data.layout.snip_features("0001")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=times)
    # As bits rot: nothing tells that the file was changed since it was last compared.
    manifest = read_manifest(path)
    assert manifest is not None
    comparisons.remember(path, manifest.version, comparisons.state([path]))
    job = build_defs({"data": data}).resolve_job_def("verify_checksums")
    result = job.execute_in_process(raise_on_error=False)
    # Red, though it blocks nothing.
    assert not result.success
    found = {e.asset_key.to_user_string(): e for e in result.get_asset_check_evaluations()}
    assert found.keys() == set(checks.SEALED)
    (failed,) = (asset for asset, check in found.items() if not check.passed)
    cure = f"delete {manifest_path(path)} and materialise it again"
    assert failed == "snip_features"
    assert found[failed].description == f"{path}: checksum differs; {cure}"


def test_a_run_about_some_shards_reads_no_others_again(data: DataSet) -> None:
    definition = build_defs({"data": data}).resolve_implicit_global_asset_job_def()
    some = definition.get_subset(asset_selection={dg.AssetKey("snip_features")})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", list(KEYS))
        tags = automation.shard_range(data.layout, ["0001"])
        result = some.execute_in_process(instance=instance, tags=tags)
    found = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert found["checksums"].metadata["looked_at"].value == 1


def test_of_many_rows_the_ends_and_a_random_sample_are_looked_at() -> None:
    many = np.broadcast_to(np.float16(0), (50_000, 4))
    rows = checks._some_rows(many, 0)
    assert rows[0] == 0 and rows[-1] == 49_999 and (np.diff(rows) > 0).all()
    assert checks.SAMPLE_ROWS <= len(rows) <= checks.SAMPLE_ROWS + 2
    assert set(rows) != set(checks._some_rows(many, 1))
    assert checks._some_rows(many[:3], 0).tolist() == [0, 1, 2]
