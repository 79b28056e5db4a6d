"""Other thresholds from the stored pairs, against a run made with them from the start."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import recut as module
from snip_assets.engine import stations
from snip_assets.engine.apply_bitmap import apply_bitmap
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.features import normalised
from snip_assets.engine.layout import Layout
from snip_assets.engine.recut import curve, recut, run_curve, thresholds
from snip_assets.engine.shards import raw_features
from snip_assets.engine.storage.files import manifest_path, seal
from snip_assets.options import SAMPLE

from .station_tools import start, until_pairs
from .test_groups import reference
from .test_publish import groups_of, run

__all__ = ["run"]


@pytest.fixture(scope="module")
def sealed(run):
    layout, registry, _, _ = run
    for key in registry.keys:
        seal(layout.duplicate_pairs(key), {}, max_distance=0.1)
    return run


def never(*_, **__):
    raise AssertionError("made again")


def every_file(folder):
    """Contents of all files; of manifests all but what the work took."""
    return {
        path.relative_to(folder): _without_cost(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _without_cost(path):
    if not path.name.endswith(".manifest.json"):
        return path.read_bytes()
    value = json.loads(path.read_text())
    facts = {n: v for n, v in value["facts"].items() if n not in ("seconds", "peak_memory")}
    return value["files"], value["inputs"], facts


@pytest.mark.parametrize("rule", ["neighbours", "largest(original_width*original_height)"])
def test_a_recut_is_what_a_run_with_that_threshold_gives(sealed, tmp_path, rule):
    layout, registry, _, _ = sealed
    facts = recut(layout.root, tmp_path / "out", 0.03, rule=rule, duplicate_count=True)
    expected = groups_of(layout, registry, tmp_path / "plain", max_distance=0.03, rule=rule)
    assert {name: facts[name] for name in expected} == expected
    target = Layout(tmp_path / "out")
    assert every_file(target.duplicate_groups) == every_file(tmp_path / "plain")
    kept = [pq.read_table(target.deduped_metadata(key)) for key in registry.keys]
    gone = [pq.read_table(target.drop_list(key)) for key in registry.keys]
    assert sum(map(len, kept)) == facts["kept"] and sum(map(len, gone)) == facts["dropped"]
    assert sum(sum(t["duplicate_count"].to_pylist()) for t in kept) == facts["dropped"]
    assert all((t["distance"].to_numpy() <= np.float32(0.03)).all() for t in gone)


def test_its_bitmap_is_applied_in_the_order_of_arrival(tmp_path):
    keys = ["0002", "0000", "0003", "0001"]
    for key in keys:
        last = start(tmp_path / "run", [key])
    until_pairs(last)
    out = Layout(tmp_path / "out")
    recut(last.layout.root, out.root, 0.05)
    done = apply_bitmap(SAMPLE.metadata, tmp_path / "applied", out.dup_bitmap / "dup_bitmap.npy")
    assert not done.by_name
    for key in keys:
        cleaned = out.deduped_metadata(key)
        assert pq.read_table(tmp_path / "applied" / cleaned.name) == pq.read_table(cleaned)
    # Of one without its run, the names alone tell.
    alone = shutil.copy(out.dup_bitmap / "dup_bitmap.npy", tmp_path)
    assert apply_bitmap(SAMPLE.metadata, tmp_path / "guessed", Path(alone)).by_name


def test_the_folder_of_another_run_is_not_written_to(sealed, tmp_path):
    other = start(tmp_path / "other", ["0000"])
    until_pairs(other)
    with pytest.raises(BadInputError, match="holds another run"):
        recut(sealed[0].root, other.layout.root, 0.05)
    # Nor that of a recut of another run, which has other shards.
    recut(other.layout.root, tmp_path / "cut", 0.05)
    mixed = start(tmp_path / "mixed", ["0001", "0000"])
    until_pairs(mixed)
    before = every_file(tmp_path / "cut")
    with pytest.raises(BadInputError, match="holds another run"):
        recut(mixed.layout.root, tmp_path / "cut", 0.05)
    assert every_file(tmp_path / "cut") == before
    # Nor does a run begin there, whose outputs would take its place.
    with pytest.raises(StaleOutputError, match="made by `snip recut`"):
        start(tmp_path / "cut")
    assert every_file(tmp_path / "cut") == before


def test_a_second_recut_makes_nothing_again(sealed, tmp_path, monkeypatch):
    layout, registry, _, _ = sealed
    out = tmp_path / "out"
    first = recut(layout.root, out, 0.05)
    before = every_file(out)
    for name in ("deduped_metadata", "drop_list", "dup_bitmap"):
        monkeypatch.setattr(module.publish, name, never)
    monkeypatch.setattr(module, "duplicate_groups", never)
    assert recut(layout.root, out, 0.05) == first
    assert every_file(out) == before
    # Only what a lost file needs is made again.
    monkeypatch.undo()
    lost = Layout(out).drop_list(registry.keys[1])
    lost.unlink()
    monkeypatch.setattr(module.publish, "deduped_metadata", never)
    recut(layout.root, out, 0.05)
    assert every_file(out) == before


def test_pairs_that_are_found_again_meanwhile_are_not_mixed(sealed, tmp_path, monkeypatch):
    layout, registry, _, _ = sealed
    root = tmp_path / "run"
    shutil.copytree(layout.root, root)
    decided = module.duplicate_groups

    def meanwhile(*arguments, **options):
        facts = decided(*arguments, **options)
        path = Layout(root).duplicate_pairs(registry.keys[0])
        pq.write_table(pq.read_table(path).slice(0, 1), path)
        seal(path, {}, max_distance=0.1)
        return facts

    monkeypatch.setattr(module, "duplicate_groups", meanwhile)
    with pytest.raises(BadInputError, match="was changed while it was read"):
        recut(root, tmp_path / "out", 0.05)


def test_no_two_near_rows_stay_where_not_all_pairs_are_stored(tmp_path):
    cut = start(tmp_path / "run", max_partners=3)
    until_pairs(cut)
    raw = raw_features(cut.registry)
    x = normalised(raw.take(np.arange(len(raw))))
    far = 2 - 2 * x.astype(np.float64) @ x.T.astype(np.float64)
    # Whatever the settings are now: pairs tell what they were made with.
    stations.duplicate_groups(start(tmp_path / "run"))
    stations.dup_bitmap(start(tmp_path / "run"))
    for most in (None, 0.1, 0.07):
        out = tmp_path / ("run" if most is None else str(most))
        if most is not None:
            recut(cut.layout.root, out, most)
        kept = np.flatnonzero(~np.load(Layout(out).dup_bitmap / "dup_bitmap.npy"))
        near = np.triu(far[np.ix_(kept, kept)] <= (most or 0.1), 1)
        assert 0 < len(kept) < len(x) and not near.any()


def test_another_cut_into_the_folder_meanwhile_is_said(sealed, tmp_path, monkeypatch):
    layout, out = sealed[0], tmp_path / "out"
    written = module._outputs

    def meanwhile(*arguments):
        monkeypatch.setattr(module, "_outputs", written)
        recut(layout.root, out, 0.02)
        return written(*arguments)

    monkeypatch.setattr(module, "_outputs", meanwhile)
    with pytest.raises(BadInputError, match="made again"):
        recut(layout.root, out, 0.05)


@pytest.mark.parametrize("rule", ["neighbours", "first", "smallest(original_width)"])
def test_the_curve_counts_pairs_groups_and_dropped(sealed, tmp_path, rule):
    layout, registry, facts, pairs = sealed
    table = run_curve(layout.root, [0.1, 0.0, 0.02], rule=rule)
    assert [row["max_distance"] for row in table] == [0.0, 0.02, 0.1]
    listed = list(zip(*pairs, strict=True))
    for row in table:
        most = row["max_distance"]
        labels = reference(listed, 2000, most)
        assert row["groups"] == (np.bincount(labels) > 1).sum()
        assert row["pairs"] == (pairs[2] <= np.float32(most)).sum()
        made = groups_of(layout, registry, tmp_path / str(most), max_distance=most, rule=rule)
        assert row["dropped"] == made["dropped"]
    if rule == "neighbours":
        assert table[-1]["dropped"] == facts["dropped"]
    assert curve([], 5, [0.1]) == [{"max_distance": 0.1, "pairs": 0, "groups": 0, "dropped": 0}]
    assert thresholds(layout.root)[-1] == 0.1


def test_what_cannot_be_recut_is_said(sealed, tmp_path):
    layout, registry, _, _ = sealed
    with pytest.raises(BadInputError, match=r"0\.2 is larger than 0\.1"):
        recut(layout.root, tmp_path / "out", 0.2)
    with pytest.raises(BadInputError, match="choose another folder"):
        recut(layout.root, layout.root, 0.05)
    with pytest.raises(BadInputError, match="no column 'size'"):
        recut(layout.root, tmp_path / "out", 0.05, rule="largest(size)")
    manifest = manifest_path(layout.duplicate_pairs(registry.keys[0]))
    stored = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(StaleOutputError, match="duplicate_pairs 0000"):
        recut(layout.root, tmp_path / "out", 0.05)
    manifest.write_bytes(stored)
    assert not (tmp_path / "out").exists()
