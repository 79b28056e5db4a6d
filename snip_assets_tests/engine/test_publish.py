"""Groups to outputs on the sample: pairs by brute force, every promise checked on the files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import publish, shards
from snip_assets.engine.changed import Former
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.group_table import duplicate_groups, top_groups
from snip_assets.engine.layout import Layout
from snip_assets.engine.metadata import Metadata
from snip_assets.engine.slices import Slices

from .pair_tools import write_pairs
from .test_groups import reference

SAMPLE = Path(shards.__file__).parents[1] / "sample"
MOST = 0.1


def sample_pairs(registry):
    """All pairs of the sample within 0.1, exact copies with their first copy alone."""
    raw = np.concatenate([np.load(s.features) for s in registry.shards])
    _, first, inverse = np.unique(raw, axis=0, return_index=True, return_inverse=True)
    first = first[inverse]
    unit = raw.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    far = np.maximum(2 - 2 * unit @ unit.T, 1e-6)
    original = first == np.arange(len(raw))
    far[~original] = far[:, ~original] = 9
    later = np.flatnonzero(~original)
    far[later, first[later]] = 0
    row, earlier = np.nonzero(np.tril(far <= MOST, -1))
    return row, earlier, far[row, earlier]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The sample registered, its pairs on disk and its groups made."""
    layout = Layout(tmp_path_factory.mktemp("out"))
    shards.register(layout, shards.Source(SAMPLE / "img_emb", SAMPLE / "metadata"))
    registry = shards.load(layout)
    row, earlier, far = sample_pairs(registry)
    for shard in registry.shards:
        inside = (row >= shard.start) & (row < shard.stop)
        write_pairs(layout.duplicate_pairs(shard.key), (row[inside], earlier[inside], far[inside]))
    facts = groups_of(layout, registry, layout.duplicate_groups)
    return layout, registry, facts, (row, earlier, far)


def groups_of(layout, registry, out, **options):
    files = [layout.duplicate_pairs(key) for key in registry.keys]
    given = {"max_distance": MOST, "metadata": Metadata.of(registry), **options}
    return duplicate_groups(files, registry.rows, out, **given)


def table_of(registry):
    return pa.concat_tables([pq.read_table(s.metadata) for s in registry.shards])


def test_the_table_of_groups(run):
    layout, registry, facts, pairs = run
    labels = np.load(layout.duplicate_groups / "labels.npy")
    np.testing.assert_array_equal(labels, reference(list(zip(*pairs, strict=True)), 2000))
    kept_row = np.load(layout.duplicate_groups / "kept_row.npy")
    far = np.load(layout.duplicate_groups / "kept_distance.npy")
    urls = table_of(registry)["url"].to_pylist()
    table = pq.read_table(layout.duplicate_groups / "groups.parquet").to_pylist()
    sizes = np.bincount(labels)
    assert [g["group"] for g in table] == list(np.flatnonzero(sizes > 1))
    for group in table:
        members = np.flatnonzero(labels == group["group"])
        kept = [r for r in members if kept_row[r] == r]
        explains = [int(np.sum(kept_row[members] == r)) for r in kept]
        assert (group["size"], group["kept"]) == (len(members), len(kept))
        assert group["representative"] == kept[int(np.argmax(explains))]
        assert group["url"] == urls[group["representative"]]
        assert group["representatives"] == kept[:16]
        assert group["largest_distance"] == far[members].max()
    assert facts["groups"] == len(table)
    assert facts["grouped_rows"] == sizes[sizes > 1].sum()
    assert facts["largest_group"] == sizes.max()
    assert facts["chained_groups"] == sum(g["kept"] > 1 for g in table) > 0
    for by, top in top_groups(layout.duplicate_groups, {"kept": 3, "size": 40}).items():
        order = sorted(table, key=lambda g, by=by: (-g[by], g["group"]))
        assert top.to_pylist() == order[: len(top)] and len(top) == {"kept": 3, "size": 40}[by]


def test_the_table_is_the_same_in_small_memory(run, monkeypatch, tmp_path):
    layout, registry, _, _ = run
    before = (layout.duplicate_groups / "groups.parquet").read_bytes()
    table = pq.read_table(layout.duplicate_groups / "groups.parquet")
    monkeypatch.setattr("snip_assets.engine.group_table.BLOCK_ROWS", 300)
    monkeypatch.setattr("snip_assets.engine.group_table.BATCH_GROUPS", 7)
    monkeypatch.setattr("snip_assets.engine.storage.external_sort.BUFFER", 50)
    groups_of(layout, registry, tmp_path / "again")
    assert pq.read_table(tmp_path / "again" / "groups.parquet").equals(table)
    monkeypatch.undo()
    groups_of(layout, registry, tmp_path / "again")
    assert (tmp_path / "again" / "groups.parquet").read_bytes() == before


def test_bitmap_and_bits(run):
    layout, _, facts, _ = run
    assert (
        publish.dup_bitmap(layout.duplicate_groups, layout.dup_bitmap, ())["dropped"]
        == (facts["dropped"])
    )
    bitmap = np.load(layout.dup_bitmap / "dup_bitmap.npy")
    assert bitmap.dtype == np.bool_ and bitmap.sum() == facts["dropped"] > 400
    bits = np.fromfile(layout.dup_bitmap / "dup_bitmap.bits", np.uint8)
    np.testing.assert_array_equal(np.unpackbits(bits, count=2000, bitorder="little"), bitmap)


def test_deduped_metadata_is_the_source_without_the_dropped_rows(run):
    layout, registry, _, _ = run
    kept_row = np.load(layout.duplicate_groups / "kept_row.npy")
    keep = kept_row == np.arange(2000)
    for shard in registry.shards:
        out = layout.deduped_metadata(shard.key)
        facts = publish.deduped_metadata(shard, Slices(layout.duplicate_groups), out)
        source, copy = pq.ParquetFile(shard.metadata), pq.ParquetFile(out)
        mask = pa.array(keep[shard.start : shard.stop])
        assert copy.read().equals(source.read().filter(mask), check_metadata=True)
        assert facts["kept"] == copy.metadata.num_rows
        assert copy.metadata.metadata == source.metadata.metadata
        first = out.read_bytes()
        publish.deduped_metadata(shard, Slices(layout.duplicate_groups), out)
        assert out.read_bytes() == first


def test_counts_and_captions_of_the_dropped_stay_on_the_survivor(run, tmp_path):
    layout, registry, _, _ = run
    kept_row = np.load(layout.duplicate_groups / "kept_row.npy")
    captions = table_of(registry)["caption"].to_pylist()
    for shard in registry.shards:
        out = tmp_path / f"{shard.key}.parquet"
        publish.deduped_metadata(
            shard,
            Slices(layout.duplicate_groups),
            out,
            duplicate_count=True,
            keep_captions=Metadata.of(registry),
        )
        table = pq.read_table(out)
        kept = [r for r in range(shard.start, shard.stop) if kept_row[r] == r]
        gone = [[d for d in np.flatnonzero(kept_row == r) if d != r] for r in kept]
        assert table["duplicate_count"].to_pylist() == [len(rows) for rows in gone]
        expected = [[captions[d] for d in rows] for rows in gone]
        assert table["duplicate_captions"].to_pylist() == expected


def test_drop_list_says_why_each_row_went(run):
    layout, registry, _, _ = run
    metadata = table_of(registry).to_pylist()
    folder = layout.duplicate_groups
    decided = Slices(folder)
    kept_row, far, labels = (
        np.load(folder / f"{name}.npy") for name in ("kept_row", "kept_distance", "labels")
    )
    for shard in registry.shards:
        out = layout.drop_list(shard.key)
        publish.drop_list(shard, decided, out)
        expected = [
            {
                "row": r,
                "key": shard.key,
                "row_in_shard": r - shard.start,
                "url": metadata[r]["url"],
                "kept_row": kept_row[r],
                "kept_url": metadata[kept_row[r]]["url"],
                "distance": far[r],
                "group": labels[r],
                "md5": metadata[r]["md5"],
                "kept_md5": metadata[kept_row[r]]["md5"],
            }
            for r in range(shard.start, shard.stop)
            if kept_row[r] != r
        ]
        assert pq.read_table(out).to_pylist() == expected
        first = out.read_bytes()
        publish.drop_list(shard, decided, out)
        assert out.read_bytes() == first


def test_only_shards_whose_slice_changed_have_another_digest(run, tmp_path):
    layout, registry, _, _ = run
    # The world before the last shard came, and after, by first copy: only its rows may go.
    files = [layout.duplicate_pairs(key) for key in registry.keys]
    old, new = tmp_path / "old", tmp_path / "new"
    given = {"max_distance": MOST, "rule": "first", "metadata": Metadata.of(registry)}
    duplicate_groups(files[:3], 1500, old, **given)
    facts = duplicate_groups(files, 2000, new, former=Former(old, files[:3]), **given)
    np.testing.assert_array_equal(
        np.load(new / "labels.npy"), np.load(layout.duplicate_groups / "labels.npy")
    )
    assert facts["rows"] == 2000
    options = {"duplicate_count": True, "keep_captions": True}
    labels = [np.load(folder / "labels.npy") for folder in (old, new)]
    for shard in registry.shards[:3]:
        same = Slices(old).deduped_digest(shard) == Slices(new).deduped_digest(shard)
        assert same
        touched = (np.load(new / "dropped_kept_rows.npy") // 500 == shard.ordinal) & (
            np.load(new / "dropped_rows.npy") >= 1500
        )
        one, other = (Slices(f).deduped_digest(shard, **options) for f in (old, new))
        same = one == other
        assert same != touched.any()
        s = slice(shard.start, shard.stop)
        relabelled = (labels[0][s] != labels[1][s]).any()
        same = Slices(old).drop_list_digest(shard) == Slices(new).drop_list_digest(shard)
        assert same or relabelled


def reduced(tmp_path, table, found=None, **options):
    path = tmp_path / "metadata_x.parquet"
    pq.write_table(table, path, **options)
    pairs = write_pairs(tmp_path / "pairs.parquet", found or [(2, 0, 0.05), (5, 4, 0.01)])
    shard = shards.Shard("x", 0, 0, len(table), 8, "<f2", tmp_path / "none", path)
    metadata = Metadata(["x"], [path], np.array([0, len(table)]))
    duplicate_groups([pairs], len(table), tmp_path / "groups", rule="first", metadata=metadata)
    return shard


@pytest.mark.parametrize("compression", ["snappy", "gzip", "zstd", "none"])
def test_the_form_of_the_file_stays(tmp_path, compression):
    table = pa.table(
        {
            "URL": [f"u{i}" for i in range(9)],
            "TEXT": pa.array(["a", None] * 4 + ["b"]).dictionary_encode(),
            "tags": [[i] * i for i in range(9)],
            "deep": [{"x": i, "y": [str(i)]} for i in range(9)],
        }
    ).replace_schema_metadata({"made by": "someone"})
    options = {"row_group_size": 4, "compression": compression, "use_dictionary": ["TEXT"]}
    shard = reduced(tmp_path, table, version="1.0", **options)
    out = tmp_path / "out.parquet"
    publish.deduped_metadata(shard, Slices(tmp_path / "groups"), out)
    copy, source = pq.ParquetFile(out), pq.ParquetFile(shard.metadata)
    expected = table.take([0, 1, 3, 4, 6, 7, 8])
    assert copy.read().to_pylist() == expected.to_pylist()
    assert copy.schema_arrow.equals(source.schema_arrow, check_metadata=True)
    assert copy.metadata.metadata[b"made by"] == b"someone"
    assert copy.metadata.format_version == "1.0"
    assert [copy.metadata.row_group(g).num_rows for g in range(copy.num_row_groups)] == [4, 3]
    for number in range(copy.metadata.num_columns):
        ours, theirs = (f.metadata.row_group(0).column(number) for f in (copy, source))
        assert (ours.compression, ours.encodings) == (theirs.compression, theirs.encodings)
    publish.drop_list(shard, Slices(tmp_path / "groups"), tmp_path / "drop.parquet")
    drops = pq.read_table(tmp_path / "drop.parquet").to_pylist()
    assert [(d["url"], d["kept_url"]) for d in drops] == [("u2", "u0"), ("u5", "u4")]


def test_small_batches_and_uneven_row_groups_change_nothing(tmp_path, monkeypatch):
    stand_for = {0: [2, 3], 1: [9], 4: [5, 10], 8: [11]}
    found = sorted((r, kept, 0.01) for kept, gone in stand_for.items() for r in gone)
    texts = {name: [f"{name}{i}" for i in range(12)] for name in ("url", "caption")}
    shard = reduced(tmp_path, pa.table(texts), found)
    # With a dictionary, a batch ends where a row group does.
    table = pa.table({**texts, "url": pa.array(texts["url"]).dictionary_encode()})
    with pq.ParquetWriter(shard.metadata, table.schema) as writer:
        for low, high in ((0, 5), (5, 6), (6, 12)):
            writer.write_table(table.slice(low, high - low))
    monkeypatch.setattr("snip_assets.engine.storage.parquet_filter.BATCH_ROWS", 4)
    monkeypatch.setattr(publish, "BATCH_ROWS", 4)
    decided = Slices(tmp_path / "groups")
    metadata = Metadata(["x"], [shard.metadata], np.array([0, 12]))
    publish.deduped_metadata(shard, decided, tmp_path / "out.parquet", keep_captions=metadata)
    kept = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["url"], row["duplicate_captions"]) for row in kept] == [
        (f"url{r}", [f"caption{d}" for d in stand_for.get(r, [])]) for r in (0, 1, 4, 6, 7, 8)
    ]
    publish.drop_list(shard, decided, tmp_path / "drop.parquet")
    drops = pq.read_table(tmp_path / "drop.parquet").to_pylist()
    assert [(d["row_in_shard"], d["url"], d["kept_url"]) for d in drops] == [
        (r, f"url{r}", f"url{r0}") for r, r0, _ in found
    ]


def test_without_urls_and_captions_there_are_nulls_and_a_note(tmp_path):
    shard = reduced(tmp_path, pa.table({"width": range(7)}))
    facts = publish.drop_list(shard, Slices(tmp_path / "groups"), tmp_path / "drop.parquet")
    assert "no column url" in facts["notes"][0]
    drops = pq.read_table(tmp_path / "drop.parquet")
    assert drops["url"].null_count == drops["kept_url"].null_count == len(drops) == 2
    metadata = Metadata(["x"], [shard.metadata], np.array([0, 7]))
    facts = publish.deduped_metadata(
        shard, Slices(tmp_path / "groups"), tmp_path / "o.parquet", keep_captions=metadata
    )
    assert "no column caption" in facts["notes"][0]


def test_no_column_is_read_for_a_drop_list_without_texts(tmp_path, monkeypatch):
    shard = reduced(tmp_path, pa.table({"width": range(7)}))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(publish, "BATCH_ROWS", 4)
    publish.drop_list(shard, Slices(tmp_path / "groups"), tmp_path / "drop.parquet")
    rows = pq.read_table(tmp_path / "drop.parquet")["row_in_shard"].to_pylist()
    assert len(rows) == 2 and rows == sorted(set(rows))


def test_no_duplicates_at_all(tmp_path):
    path = tmp_path / "metadata_x.parquet"
    pq.write_table(pa.table({"url": list("abc")}), path)
    shard = shards.Shard("x", 0, 0, 3, 8, "<f2", tmp_path / "none", path)
    metadata = Metadata(["x"], [path], np.array([0, 3]))
    pairs = write_pairs(tmp_path / "pairs.parquet", [])
    facts = duplicate_groups([pairs], 3, tmp_path / "groups", metadata=metadata)
    assert facts["groups"] == facts["dropped"] == 0
    assert publish.dup_bitmap(tmp_path / "groups", tmp_path / "bitmap", ())["dropped"] == 0
    publish.drop_list(shard, Slices(tmp_path / "groups"), tmp_path / "d.parquet")
    assert pq.read_table(tmp_path / "d.parquet").schema.equals(publish.DROP_LIST)
    publish.deduped_metadata(shard, Slices(tmp_path / "groups"), tmp_path / "m.parquet")
    assert pq.read_table(tmp_path / "m.parquet").num_rows == 3


def test_files_that_do_not_fit_are_named(tmp_path):
    shard = reduced(tmp_path, pa.table({"url": list("abcdefg"), "duplicate_count": range(7)}))
    decided, out = Slices(tmp_path / "groups"), tmp_path / "o.parquet"
    with pytest.raises(BadInputError, match="has a column duplicate_count already"):
        publish.deduped_metadata(shard, decided, out, duplicate_count=True)
    with pytest.raises(BadInputError, match="7 rows, expected 6"):
        publish.deduped_metadata(replace(shard, rows=6), decided, out)
    with pytest.raises(BadInputError, match="decides about 7 rows"):
        publish.drop_list(replace(shard, start=3), decided, out)
    assert not out.exists()


def test_img2dataset_reads_what_we_write(run, tmp_path):
    layout, registry, _, _ = run
    folder = tmp_path / "deduped_metadata"
    kept = 0
    for shard in registry.shards:
        out = folder / f"metadata_{shard.key}.parquet"
        kept += publish.deduped_metadata(shard, Slices(layout.duplicate_groups), out)["kept"]
    reader = pytest.importorskip("img2dataset.reader")
    (tmp_path / "parts").mkdir()
    read = reader.Reader(
        str(folder), "parquet", "url", "caption", "md5", "md5", ["original_width"], 300, set(),
        str(tmp_path / "parts"),
    )  # fmt: skip
    rows = 0
    for _, part in read:
        table = pa.ipc.open_file(part).read_all()
        assert table.column_names == ["original_width", "caption", "md5", "url"]
        assert table["url"].null_count == 0
        rows += len(table)
    assert rows == kept


def test_the_contract_of_img2dataset_holds(run, tmp_path):
    # Its reader globs *.parquet in a folder and reads the columns it is told to, in file order.
    layout, registry, _, _ = run
    shard = registry.shards[1]
    out = tmp_path / "deduped_metadata" / f"metadata_{shard.key}.parquet"
    publish.deduped_metadata(shard, Slices(layout.duplicate_groups), out)
    assert [p.name for p in out.parent.glob("*.parquet")] == [out.name]
    with open(out, "rb") as handle:
        table = pq.read_table(handle, columns=["url", "caption"])
    assert all(pa.types.is_large_string(field.type) for field in table.schema)
