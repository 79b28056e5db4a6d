"""What outputs depend on: each ingredient, changed alone, gives another digest or other files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import bitmap, shards, stations
from snip_assets.engine.apply_bitmap import apply_bitmap
from snip_assets.engine.group_table import duplicate_groups
from snip_assets.engine.layout import Layout
from snip_assets.engine.metadata import Metadata
from snip_assets.engine.recut import recut
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Shard
from snip_assets.engine.slices import Slices
from snip_assets.engine.storage.files import seal

from .pair_tools import write_pairs
from .test_recut import every_file

# Rows 0 to 3 are shard a, rows 4 to 7 shard b.
STARTS = {"a": 0, "b": 4}
PAIRS = [(4, 0, 0.01), (6, 1, 0.02)]
COLUMNS = {
    "url": ["ab", "c", *"defghi"],
    "caption": [f"caption {row}" for row in range(8)],
    "md5": [f"md5 of {row}" for row in range(8)],
    "score": [float(8 - row) for row in range(8)],
}


def write_metadata(folder, key, **columns):
    own = slice(STARTS[key], STARTS[key] + 4)
    table = {name: values[own] for name, values in {**COLUMNS, **columns}.items()}
    pq.write_table(pa.table(table), folder / f"metadata_{key}.parquet")


def changed(name, row, value):
    return {name: [*COLUMNS[name][:row], value, *COLUMNS[name][row + 1 :]]}


def decided(folder, pairs=PAIRS, **columns):
    """The decision about eight rows, the first of near ones kept."""
    folder.mkdir()
    for key in STARTS:
        write_metadata(folder, key, **columns)
    paths = [folder / f"metadata_{key}.parquet" for key in STARTS]
    known = Metadata([*STARTS], paths, np.array([0, 4, 8]))
    files = [write_pairs(folder / "pairs.parquet", pairs)]
    duplicate_groups(files, 8, folder / "groups", rule="first", metadata=known)
    return Slices(folder / "groups")


def shard(key):
    return Shard(key, "ab".index(key), STARTS[key], 4, 8, "<f2", Path("none"), Path("none"))


def drop_list(some):
    return some.drop_list_digest(shard("b"))


def deduped(some):
    return some.deduped_digest(shard("a"))


def counted(some):
    return some.deduped_digest(shard("a"), duplicate_count=True)


def captioned(some):
    return some.deduped_digest(shard("a"), keep_captions=True)


TWINS = {name: [values[0]] * 2 + values[2:] for name, values in COLUMNS.items()}


@pytest.mark.parametrize(
    ("digest", "before", "after"),
    [
        pytest.param(drop_list, {}, {"pairs": [(4, 0, 0.03), PAIRS[1]]}, id="distance"),
        pytest.param(drop_list, {}, {"pairs": [(5, 0, 0.01), PAIRS[1]]}, id="row"),
        pytest.param(drop_list, {}, {"pairs": [*PAIRS, (6, 4, 0.05)]}, id="group"),
        pytest.param(
            drop_list,
            {"pairs": [(4, 0, 0.01), (4, 1, 0.05)], **TWINS},
            {"pairs": [(4, 0, 0.05), (4, 1, 0.01)], **TWINS},
            id="kept row",
        ),
        pytest.param(drop_list, {}, changed("md5", 0, "md5 of X"), id="md5"),
        pytest.param(drop_list, {}, changed("url", 0, "aX"), id="letters"),
        pytest.param(drop_list, {}, {"url": ["a", "bc", *"defghi"]}, id="lengths"),
        pytest.param(drop_list, changed("url", 0, ""), changed("url", 0, None), id="null"),
        pytest.param(deduped, {"pairs": [(1, 0, 0.01)]}, {"pairs": [(2, 0, 0.01)]}, id="own rows"),
        pytest.param(counted, {}, {"pairs": [PAIRS[0], (6, 0, 0.02)]}, id="counts"),
        pytest.param(captioned, {}, {"pairs": [(5, 0, 0.01), PAIRS[1]]}, id="whose captions"),
    ],
)
def test_the_digest_of_a_decision_tells(tmp_path, digest, before, after):
    one, other = decided(tmp_path / "one", **before), decided(tmp_path / "other", **after)
    assert digest(one) == digest(decided(tmp_path / "again", **before)) != digest(other)


def test_each_choice_of_columns_has_a_digest_of_its_own(tmp_path):
    some = decided(tmp_path / "some")
    both = some.deduped_digest(shard("a"), duplicate_count=True, keep_captions=True)
    assert len({deduped(some), counted(some), captioned(some), both}) == 4


def test_a_longer_bitmap_is_another_though_its_bytes_are_the_same():
    assert bitmap.digest(np.array([True])) != bitmap.digest(np.array([True, False]))


@pytest.fixture
def folder(tmp_path):
    """Two shards, near pairs between them, none of their rows hashed."""
    features = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float16)
    features[4] = 2 * features[0]
    for key, start in STARTS.items():
        np.save(tmp_path / f"img_emb_{key}.npy", features[start : start + 4])
        write_metadata(tmp_path, key)
    layout = Layout(tmp_path / "run")
    shards.register(layout, shards.Source(tmp_path, tmp_path))
    # Rows 0 and 4 point the same way; a class of copies would explain row 5, row 0 does not.
    pairs = {"a": [], "b": [(4, 0, 0.0), (5, 4, 0.05), (6, 1, 0.02)]}
    for key in STARTS:
        write_pairs(layout.duplicate_pairs(key), pairs[key])
        seal(layout.duplicate_pairs(key), {}, max_distance=0.1)
    return tmp_path


def hash_rows(folder):
    run = stations.Run(Layout(folder / "run"), Settings())
    stations.clip_features(run, run.registry.keys)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        pytest.param({}, lambda folder: {"max_distance": 0.01}, id="distance"),
        pytest.param({}, lambda folder: {"rule": "smallest(score)"}, id="rule"),
        pytest.param({}, hash_rows, id="which pairs are copies"),
        pytest.param(
            {"rule": "largest(score)"},
            lambda folder: write_metadata(folder, "b", **changed("score", 6, 9.0)),
            id="values of the rule",
        ),
        pytest.param(
            {"keep_captions": True},
            lambda folder: write_metadata(folder, "b", **changed("caption", 6, "another")),
            id="captions in another shard",
        ),
        pytest.param(
            {},
            lambda folder: write_metadata(folder, "b", **changed("url", 6, "another")),
            id="own texts",
        ),
    ],
)
def test_a_recut_after_a_change_is_as_one_made_anew(folder, options, change):
    options = {"max_distance": 0.05, "rule": "first", **options}
    recut(folder / "run", folder / "out", **options)
    before = every_file(folder / "out")
    options |= change(folder) or {}
    for out in ("out", "anew"):
        recut(folder / "run", folder / out, **options)
    assert every_file(folder / "out") == every_file(folder / "anew") != before


@pytest.mark.parametrize("what", ["metadata", "bitmap"])
def test_a_bitmap_is_applied_again_when_it_or_the_metadata_has_changed(tmp_path, what):
    (tmp_path / "metadata").mkdir()
    write_metadata(tmp_path / "metadata", "a")
    np.save(tmp_path / "drop.npy", np.array([False, True, False, False]))

    def apply():
        done = apply_bitmap(tmp_path / "metadata", tmp_path / "out", tmp_path / "drop.npy")
        kept = pq.read_table(tmp_path / "out" / "metadata_a.parquet")
        return done.skipped, kept["url"].to_pylist()

    assert [apply(), apply()] == [(0, ["ab", "d", "e"]), (1, ["ab", "d", "e"])]
    if what == "metadata":
        write_metadata(tmp_path / "metadata", "a", **changed("url", 0, "XY"))
        assert apply() == (0, ["XY", "d", "e"])
    else:
        np.save(tmp_path / "drop.npy", np.array([False, False, True, False]))
        assert apply() == (0, ["ab", "c", "e"])
