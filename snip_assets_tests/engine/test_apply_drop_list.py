"""Drop lists on another copy of the metadata: other files, other order, other columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import publish
from snip_assets.engine.apply_drop_list import apply_drop_list, summary
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.slices import Slices

from .test_publish import run, table_of

__all__ = ["run"]


@pytest.fixture(scope="module")
def lists(run):
    layout, registry, _, _ = run
    for shard in registry.shards:
        publish.drop_list(shard, Slices(layout.duplicate_groups), layout.drop_list(shard.key))
    return layout.drop_list("x").parent, registry, layout


def shuffled(registry, folder, rows=2000):
    """The metadata in another order, in three files of other names, with URL and hash."""
    order = np.random.default_rng(0).permutation(2000)[:rows]
    table = table_of(registry).take(order).rename_columns(
        ["URL", "TEXT", "w", "h", "bytes", "hash", "licence"]
    ).append_column("row", pa.array(order))  # fmt: skip
    folder.mkdir()
    for number, start in enumerate(range(0, rows, 700)):
        path = folder / f"part-{number}.parquet"
        pq.write_table(table.slice(start, 700), path, row_group_size=300, compression="gzip")
    return order


def test_by_url_whatever_the_order_and_the_files(lists, tmp_path):
    drops, registry, layout = lists
    order = shuffled(registry, tmp_path / "copy")
    result = apply_drop_list(drops, tmp_path / "copy", tmp_path / "out", memory_gb=0.2)
    kept_row = np.load(layout.duplicate_groups / "kept_row.npy")
    expected = [r for r in order if kept_row[r] == r]
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == ["part-0.parquet", "part-1.parquet", "part-2.parquet"]
    tables = [pq.read_table(f) for f in files]
    assert pa.concat_tables(tables)["row"].to_pylist() == expected
    source = pq.ParquetFile(tmp_path / "copy" / "part-0.parquet")
    assert tables[0].schema.equals(source.schema_arrow, check_metadata=True)
    dropped = 2000 - len(expected)
    assert (result["rows"], result["matched"], result["dropped"]) == (2000, dropped, dropped)
    assert [f["kept"] for f in result["files"]] == [len(t) for t in tables]
    assert result["listed"] == result["found"] == dropped


def test_a_partial_copy_says_what_was_not_there(lists, tmp_path):
    drops, registry, layout = lists
    order = shuffled(registry, tmp_path / "copy", 900)
    kept_row = np.load(layout.duplicate_groups / "kept_row.npy")
    dropped = [row for row in order if kept_row[row] != row]
    explained = np.isin(kept_row[dropped], order)
    for every, gone in ((True, len(dropped)), (False, explained.sum())):
        result = apply_drop_list(drops, tmp_path / "copy", tmp_path / "out", every=every)
        assert result["found"] == len(dropped) and result["dropped"] == gone
        assert result["alone"] == len(dropped) - gone
    missing = f"{result['listed'] - len(dropped)} of {result['listed']} rows"
    assert summary(result)[1].startswith(missing)
    assert f"{result['alone']} rows stay, as this copy lacks" in summary(result)[2]


def test_by_key_gives_the_deduped_metadata(lists, tmp_path):
    drops, registry, layout = lists
    result = apply_drop_list(drops, registry.source.metadata, tmp_path, on="key")
    for shard in registry.shards:
        out = tmp_path / "again.parquet"
        publish.deduped_metadata(shard, Slices(layout.duplicate_groups), out)
        assert (tmp_path / f"metadata_{shard.key}.parquet").read_bytes() == out.read_bytes()
    assert result["found"] == result["listed"] == result["dropped"]


def test_equal_values_of_dropped_and_kept_rows_leave_one(tmp_path):
    columns = {"key": "a", "row_in_shard": 0, "kept_md5": None, "md5": None}
    drops = pa.Table.from_pylist(
        [
            {**columns, "url": "same", "kept_url": "same"},
            {**columns, "url": "same", "kept_url": "same"},
            {**columns, "url": "gone", "kept_url": "other"},
            {**columns, "url": None, "kept_url": "other"},
        ]
    )
    (tmp_path / "drops").mkdir()
    (tmp_path / "copy").mkdir()
    pq.write_table(drops, tmp_path / "drops" / "a.parquet")
    for name, urls in {
        "1": ["same", "gone", None, "other"],
        "2": ["gone", "same"],
        "3": ["it's", "same", "same", "gone", "other"],
    }.items():
        pq.write_table(pa.table({"url": urls}), tmp_path / "copy" / f"{name}'s.parquet")
    result = apply_drop_list(tmp_path / "drops", tmp_path / "copy", tmp_path / "out")
    kept = [pq.read_table(f)["url"].to_pylist() for f in sorted((tmp_path / "out").iterdir())]
    # Two of the four rows of "same" go, as listed: the last two.
    assert kept == [["same", None, "other"], ["same"], ["it's", "other"]]
    assert [f["matched"] for f in result["files"]] == [2, 2, 3]


@pytest.mark.parametrize("rows", [1, 2])
def test_the_last_row_of_a_value_that_was_kept_stays(tmp_path, rows):
    """Where the drop list names more rows than there are."""
    drops, copy = tmp_path / "drops.parquet", tmp_path / "copy.parquet"
    pq.write_table(pa.table({"url": ["same"] * 2, "kept_url": ["same"] * 2}), drops)
    pq.write_table(pa.table({"url": ["same"] * rows}), copy)
    result = apply_drop_list(drops, copy, tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / copy.name)["url"].to_pylist() == ["same"]
    assert (result["matched"], result["dropped"]) == (rows, rows - 1)


def test_a_kept_row_that_shares_the_url_of_a_dropped_one(tmp_path):
    """One url gave two pictures: the kept one is in no drop list."""
    drops, copy = tmp_path / "drops.parquet", tmp_path / "copy.parquet"
    listed = {"url": "u", "md5": "1", "kept_url": "k", "kept_md5": "2"}
    unnamed = {**listed, "url": "gone", "md5": None}
    pq.write_table(pa.Table.from_pylist([listed, unnamed]), drops)
    rows = [("k", "2"), ("u", "1"), ("u", "3"), ("gone", None), ("u", None)]
    pq.write_table(pa.Table.from_pylist([{"URL": u, "md5": m} for u, m in rows]), copy)

    def apply(on):
        result = apply_drop_list(drops, copy, tmp_path / "out", on=on)
        table = pq.read_table(tmp_path / "out" / copy.name)
        return result, list(zip(*table.to_pydict().values(), strict=True))

    result, kept = apply("url")
    assert kept == rows[:1] and result["beyond"] == 2
    assert "2 of the dropped rows are beyond those that the drop lists name" in summary(result)[-1]
    result, kept = apply("url+md5")
    assert kept == [rows[0], *rows[2:]]
    assert [result[n] for n in ("found", "nameless", "dropped", "beyond")] == [1, 1, 1, 0]


def test_numbers_and_bytes_match_as_text(tmp_path):
    drops, copy = tmp_path / "drops.parquet", tmp_path / "copy.parquet"
    for go, kept in ((pa.array([7]), pa.array([8])), (pa.array([b"7"]), pa.array([b"8"]))):
        pq.write_table(pa.table({"url": go, "kept_url": kept}), drops)
        for urls in (pa.array([8, 7]), pa.array(["8", "7"])):
            pq.write_table(pa.table({"url": urls}), copy)
            assert apply_drop_list(drops, copy, tmp_path / "out")["dropped"] == 1


@pytest.mark.parametrize("memory_gb", [0, -1, float("nan"), 0.001])
def test_too_little_memory_is_said_without_a_trace(tmp_path, memory_gb):
    pq.write_table(pa.table({"url": ["a"], "kept_url": ["b"]}), tmp_path / "drops.parquet")
    pq.write_table(pa.table({"url": ["a", "b"]}), tmp_path / "copy.parquet")
    places = tmp_path / "drops.parquet", tmp_path / "copy.parquet", tmp_path / "out"
    with pytest.raises(BadInputError, match="memory"):
        apply_drop_list(*places, memory_gb=memory_gb)
    assert apply_drop_list(*places, memory_gb=1e12)["dropped"] == 1


def test_names_that_look_like_patterns_are_names(tmp_path):
    urls = {n: [f"{n}{i}" for i in range(3)] for n in ("ab", "a?", "a*", "[a]b")}
    (tmp_path / "drops").mkdir()
    (tmp_path / "copy").mkdir()
    for place, (name, own) in enumerate(urls.items()):
        lists = pa.table({"url": [f"gone {name}"], "kept_url": pa.nulls(1, pa.string())})
        pq.write_table(lists, tmp_path / "drops" / f"{name}.parquet")
        # In each file another row goes, so that those of no other may stand for it.
        table = pa.table({"url": [*own[:place], f"gone {name}", *own[place:]]})
        pq.write_table(table, tmp_path / "copy" / f"{name}.parquet")
    result = apply_drop_list(tmp_path / "drops", tmp_path / "copy", tmp_path / "out")
    for name, own in urls.items():
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet")["url"].to_pylist() == own
    assert result["listed"] == result["matched"] == 4


def test_text_that_is_not_marked_as_text_matches_by_its_letters(tmp_path):
    urls = ["é", "it's", '"', "a\\b", "a\nb", "kept"]
    go, kept = pa.array(urls[:-1]), pa.array(["kept"] * 5)
    pq.write_table(pa.table({"url": go, "kept_url": kept}), tmp_path / "drops.parquet")
    for kind in (pa.binary(), pa.large_binary()):
        copy = tmp_path / str(kind)
        copy.mkdir()
        pq.write_table(pa.table({"url": pa.array(urls).cast(kind)}), copy / "copy.parquet")
        result = apply_drop_list(tmp_path / "drops.parquet", copy, copy / "out")
        assert (result["found"], result["dropped"]) == (5, 5)
        assert pq.read_table(copy / "out" / "copy.parquet")["url"].to_pylist() == [b"kept"]


def test_md5_of_the_sample_leaves_one_of_each(lists, tmp_path):
    drops, registry, _ = lists
    apply_drop_list(drops, registry.source.metadata, tmp_path, on="md5")
    kept = pa.concat_tables([pq.read_table(f) for f in tmp_path.glob("*.parquet")])
    listed = pa.concat_tables([pq.read_table(f) for f in drops.glob("*.parquet")])
    representatives = set(listed["kept_md5"].to_pylist())
    assert representatives <= set(kept["md5"].to_pylist())


def test_what_does_not_fit_is_named(lists, tmp_path):
    drops, registry, _ = lists
    shuffled(registry, tmp_path / "copy")
    with pytest.raises(
        BadInputError, match=r"part-0\.parquet: no column md5 to match by; it has U"
    ):
        apply_drop_list(drops, tmp_path / "copy", tmp_path / "out", on="md5")
    with pytest.raises(BadInputError, match=r"part-0\.parquet: to match by key, files must be"):
        apply_drop_list(drops, tmp_path / "copy", tmp_path / "out", on="key")
    with pytest.raises(BadInputError, match="it is no drop list"):
        apply_drop_list(tmp_path / "copy", tmp_path / "copy", tmp_path / "out")
    with pytest.raises(BadInputError, match="overwrite its own source"):
        apply_drop_list(drops, tmp_path / "copy", tmp_path / "copy")
    with pytest.raises(BadInputError, match="no parquet file here"):
        apply_drop_list(tmp_path / "none", tmp_path / "copy", tmp_path / "out")


def test_rows_without_a_value_are_counted_as_such(tmp_path):
    for name in ("drops", "copy"):
        (tmp_path / name).mkdir()
    texts = pa.array([None, "a", "gone"], pa.string())
    pq.write_table(pa.table({"url": texts, "kept_url": texts}), tmp_path / "drops" / "0.parquet")
    pq.write_table(pa.table({"url": ["a", "a", "b"]}), tmp_path / "copy" / "0.parquet")
    (tmp_path / "copy" / "._0.parquet").write_bytes(b"left by a desktop")
    result = apply_drop_list(tmp_path / "drops", tmp_path / "copy", tmp_path / "out")
    assert [result[n] for n in ("listed", "nameless", "found", "dropped")] == [3, 1, 1, 1]
    assert "1 of 3 rows of the drop lists are not in this copy." in summary(result)
    assert any("1 rows of the drop lists have no url" in line for line in summary(result))
