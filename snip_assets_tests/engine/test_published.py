"""The published bitmap meets the right rows. Each test fails on what the authors' scripts do."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import row_offsets
from snip_assets.engine.apply_bitmap import apply_bitmap
from snip_assets.engine.bitmap import Bitmap
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.published import Request, download
from snip_assets.engine.storage.remote import Policy
from snip_assets_tests import mirror as faulty

QUICK = Policy(attempts=4, backoff=0.01, timeout=2.0, at_once=3)
OFFSETS = np.cumsum([0, *faulty.LENGTHS])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Ten shards; first rows of files marked, one file marked whole, one file empty."""
    folder = tmp_path_factory.mktemp("served")
    bitmap = np.random.default_rng(1).random(OFFSETS[-1]) < 0.4
    bitmap[OFFSETS[[0, 1, 2, 5, 9]]] = True
    bitmap[OFFSETS[6] : OFFSETS[7]] = True
    faulty.make(folder, bitmap)
    return folder


@pytest.fixture
def mirror(served, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with faulty.serving(served) as server:
        yield server


def ask(mirror, tmp_path, **changes) -> Request:
    values = {
        "out": tmp_path / "out",
        "metadata": mirror.url + "/metadata/metadata_{shard:04d}.parquet",
        "bitmap": f"{mirror.url}/is_dup.npy",
        **changes,
    }
    return Request(**values)


def expected(served, shard: int) -> pa.Table:
    table = pq.read_table(served / "metadata" / f"metadata_{shard:04d}.parquet")
    drop = np.load(served / "is_dup.npy")[OFFSETS[shard] : OFFSETS[shard + 1]]
    return table.filter(pa.array(~drop))


def right(served, folder, shards) -> bool:
    written = sorted(p.name for p in folder.glob("*.parquet"))
    assert written == [f"metadata_{n:04d}.parquet" for n in shards]
    return all(pq.read_table(folder / f"metadata_{n:04d}.parquet").equals(expected(served, n))
               for n in shards)  # fmt: skip


def as_the_authors_do(served, start: int, end: int) -> dict[int, pa.Table]:
    """Offset advanced by what is kept, from 0 whatever the start, each first row kept."""
    bitmap, position, out = np.load(served / "is_dup.npy"), 0, {}
    for n in range(start, end):
        table = pq.read_table(served / "metadata" / f"metadata_{n:04d}.parquet")
        keep = ~bitmap[position : position + len(table)]
        keep[:1] = True
        out[n] = table.filter(pa.array(keep))
        position += len(out[n])
    return out


def test_the_data_tells_right_from_wrong(served):
    theirs = as_the_authors_do(served, 0, 10)
    assert not any(theirs[n].equals(expected(served, n)) for n in range(10) if n != 3)


def test_a_full_run_keeps_exactly_the_unmarked_rows(mirror, served, tmp_path):
    done = download(ask(mirror, tmp_path), QUICK)
    assert right(served, tmp_path / "out" / "metadata", range(10))  # the last shard too
    bitmap = np.load(served / "is_dup.npy")
    assert (done.files, done.rows, done.dropped) == (10, 2000, bitmap.sum()) and done.proven


def test_schema_order_compression_and_file_metadata_stay(mirror, served, tmp_path):
    download(ask(mirror, tmp_path, start=2, end=3), QUICK)
    ours = pq.ParquetFile(tmp_path / "out" / "metadata" / "metadata_0002.parquet")
    theirs = pq.ParquetFile(served / "metadata" / "metadata_0002.parquet")
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)
    assert ours.metadata.row_group(0).column(0).compression == "GZIP"


@pytest.mark.parametrize("offsets", [None, "file", "footers"])
@pytest.mark.parametrize(("start", "end"), [(3, 10), (3, 5), (9, 10), (0, 2), (4, None)])
def test_any_start_and_end_give_the_rows_of_a_full_run(
    mirror, served, tmp_path, offsets, start, end
):
    place = f"{mirror.url}/cum_sz.npy" if offsets == "file" else offsets
    done = download(ask(mirror, tmp_path, start=start, end=end, offsets=place), QUICK)
    assert right(served, tmp_path / "out" / "metadata", range(start, end or 10))
    assert done.proven == (offsets == "file" or end in (None, 10))


def test_offsets_come_from_footers_not_from_downloads(mirror, tmp_path):
    download(ask(mirror, tmp_path, start=9, end=10), QUICK)
    whole = [p for p, headers in mirror.requests if "Range" not in headers]
    assert sorted(whole) == ["/is_dup.npy", "/metadata/metadata_0009.parquet"]
    assert row_offsets.from_footers(f"{mirror.url}/metadata", None, QUICK).tolist() == [*OFFSETS]


def test_it_refuses_rather_than_guess(mirror, tmp_path):
    mirror.ranges = False  # and footers are out of reach
    with pytest.raises(BadInputError, match=r"depends on the rows of all shards.*--offsets"):
        big = ask(mirror, tmp_path, start=8, end=9, metadata=mirror.url + "/large/{key}.parquet")
        (mirror.folder / "large").mkdir(exist_ok=True)
        for n in range(10):
            noise = np.random.default_rng(n).random(20_000)
            pq.write_table(pa.table({"x": noise}), mirror.folder / "large" / f"{n:04d}.parquet")
        download(big, QUICK)
    assert not (tmp_path / "out" / "metadata").exists()


@pytest.mark.parametrize(("length", "word"), [(1999, "short"), (2001, "long"), (1631, "short")])
def test_a_bitmap_of_another_length_is_refused(mirror, served, tmp_path, length, word):
    np.save(tmp_path / "other.npy", np.resize(np.load(served / "is_dup.npy"), length))
    for changes in ({}, {"end": 10}, {"start": 3, "end": 10}, {"offsets": "footers"}):
        with pytest.raises(BadInputError, match=f"too {word}: {length} entries"):
            download(ask(mirror, tmp_path, bitmap=str(tmp_path / "other.npy"), **changes), QUICK)
    for offsets in (None, served / "cum_sz.npy"):
        with pytest.raises(BadInputError, match=f"too {word}"):
            apply_bitmap(served / "metadata", tmp_path / "x", tmp_path / "other.npy", offsets)
    assert not (tmp_path / "x").exists() and not (tmp_path / "out" / "metadata").exists()


def test_a_second_call_fetches_nothing_and_writes_the_same(mirror, served, tmp_path):
    download(ask(mirror, tmp_path, end=4), QUICK)
    folder = tmp_path / "out" / "metadata"
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    asked = len(mirror.requests)
    again = download(ask(mirror, tmp_path, end=4, offsets=str(served / "cum_sz.npy")), QUICK)
    assert again.skipped == 4 and len(mirror.requests) == asked
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    (folder / "metadata_0002.parquet").write_bytes(b"damaged")
    download(ask(mirror, tmp_path, end=4), QUICK)
    assert right(served, folder, range(4))
    assert not (tmp_path / "out" / ".originals").exists()


def test_with_faults_on_every_path_the_outcome_is_the_same(mirror, served, tmp_path):
    for n in range(10):
        path = f"/metadata/metadata_{n:04d}.parquet"
        mirror.faults[path] = [
            [faulty.status(429, Retry_After="0"), faulty.status(500)],
            [faulty.cut(3000), faulty.cut(100)],
            [faulty.status(503)],
        ][n % 3]
    mirror.faults["/is_dup.npy"] = [faulty.cut(700)]
    download(ask(mirror, tmp_path, offsets=str(served / "cum_sz.npy")), QUICK)
    assert right(served, tmp_path / "out" / "metadata", range(10))


def test_a_page_instead_of_a_shard_stops_the_run(mirror, served, tmp_path):
    mirror.faults["/metadata/metadata_0001.parquet"] = [faulty.page]
    with pytest.raises(BadInputError, match="Quota exceeded"):
        download(ask(mirror, tmp_path, end=3), QUICK)
    download(ask(mirror, tmp_path, end=3), QUICK)
    assert right(served, tmp_path / "out" / "metadata", range(3))


def test_an_address_without_any_shard_is_said(mirror, tmp_path):
    request = ask(mirror, tmp_path, metadata=f"{mirror.url}/nowhere/{{key}}.parquet")
    with pytest.raises(BadInputError, match=r"0000\.parquet: no metadata shard there"):
        download(request, QUICK)


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_packed_bitmap_is_fetched_and_a_page_is_not(mirror, served, tmp_path, order):
    bits = np.packbits(np.load(served / "is_dup.npy"), bitorder=order)
    bits.tofile(served / "is_dup.bits")
    mirror.faults["/is_dup.bits"] = [faulty.page]
    place = f"{mirror.url}/is_dup.bits"
    request = ask(mirror, tmp_path, bitmap=place, offsets="footers", bit_order=order)
    with pytest.raises(BadInputError, match="a web page came instead of the bits file"):
        download(request, QUICK)
    download(request, QUICK)
    assert right(served, tmp_path / "out" / "metadata", range(10))


def test_a_shard_of_another_version_is_refused(mirror, served, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for n in (0, 1):
        table = pq.read_table(served / "metadata" / f"metadata_{n:04d}.parquet")
        pq.write_table(table.slice(n), odd / f"metadata_{n:04d}.parquet")
    request = ask(mirror, tmp_path, metadata=str(odd), end=2, offsets=str(served / "cum_sz.npy"))
    with pytest.raises(BadInputError, match="99 rows, but shard 1 has 100"):
        download(request, QUICK)


def test_apply_to_a_folder(served, tmp_path):
    done = apply_bitmap(served / "metadata", tmp_path / "out", served / "is_dup.npy")
    assert right(served, tmp_path / "out", range(10)) and done.files == 10
    again = apply_bitmap(served / "metadata", tmp_path / "out", served / "is_dup.npy")
    assert again.skipped == 10 and again.dropped == done.dropped


def test_apply_to_some_files_needs_offsets_and_says_which_are_missing(served, tmp_path):
    some = tmp_path / "some"
    some.mkdir()
    for n in (0, 2, 7, 9):
        name = f"metadata_{n:04d}.parquet"
        (some / name).write_bytes((served / "metadata" / name).read_bytes())
    with pytest.raises(BadInputError, match=r"6 shards are missing \(1, 3, 4, 5, 6, 8\)"):
        apply_bitmap(some, tmp_path / "out", served / "is_dup.npy")
    done = apply_bitmap(some, tmp_path / "out", served / "is_dup.npy", served / "cum_sz.npy")
    assert right(served, tmp_path / "out", [0, 2, 7, 9])
    assert done.missing == ["1", "3", "4", "5", "6", "8"]


def copied(served, tmp_path):
    shutil.copytree(served / "metadata", tmp_path / "source" / "metadata")
    (tmp_path / "link").symlink_to(tmp_path / "source" / "metadata")
    return tmp_path / "source"


@pytest.mark.parametrize("way", ["folder", "one file", "link", "download"])
def test_no_source_is_overwritten(served, tmp_path, way):
    source = copied(served, tmp_path)
    folder, marks = source / "metadata", served / "is_dup.npy"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BadInputError, match="overwrite its own source"):
        if way == "download":
            download(Request(out=source, metadata=str(folder), bitmap=str(marks)), QUICK)
        elif way == "one file":
            bounds = tmp_path / "offsets.npy"
            np.save(bounds, OFFSETS)
            apply_bitmap(folder / "metadata_0000.parquet", folder, marks, bounds)
        else:
            apply_bitmap(tmp_path / "link" if way == "link" else folder, folder, marks)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def named(folder, names):
    folder.mkdir()
    for n, name in enumerate(names):
        pq.write_table(pa.table({"row": [3 * n, 3 * n + 1, 3 * n + 2]}), folder / name)
    marks = np.zeros(3 * len(names), bool)
    marks[1:3] = True
    np.save(folder.parent / "marks.npy", marks)
    return folder.parent / "marks.npy"


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002-6f3344faa23e9b7a", "train-00001-of-00002-1c0de5a1f3b2c1ee"),
        ("part-00000-5b54c5d5-bbcf-484d-a2ce-c000.snappy", "part-00001-0d6f73df1a36-c000.snappy"),
    ],
)
def test_a_hash_in_a_name_is_no_number(tmp_path, names):
    files = [f"{name}.parquet" for name in names]
    marks = named(tmp_path / "hub", files)
    apply_bitmap(tmp_path / "hub", tmp_path / "out", marks)
    rows = [pq.read_table(tmp_path / "out" / file)["row"].to_pylist() for file in files]
    assert rows == [[0], [3, 4, 5]]
    # One of them alone: its name says which.
    np.save(tmp_path / "offsets.npy", [0, 3, 6])
    (tmp_path / "hub" / files[0]).unlink()
    apply_bitmap(tmp_path / "hub", tmp_path / "one", marks, tmp_path / "offsets.npy")
    assert pq.read_table(tmp_path / "one" / files[1])["row"].to_pylist() == [3, 4, 5]


def test_names_that_tell_no_order_are_refused(tmp_path):
    marks = named(tmp_path / "some", ["a-9e1.parquet", "b-3c0.parquet"])
    with pytest.raises(BadInputError, match="before or after"):
        apply_bitmap(tmp_path / "some", tmp_path / "out", marks)
    assert not (tmp_path / "out").exists()


def test_a_date_in_a_name_costs_no_memory(tmp_path):
    marks = named(tmp_path / "some", ["part-20231231235959.parquet"])
    np.save(marks, np.zeros(9, bool))
    with pytest.raises(BadInputError, match="9"):
        apply_bitmap(tmp_path / "some", tmp_path / "out", marks)


def test_two_files_of_one_shard_are_refused(served, tmp_path):
    one = (served / "metadata" / "metadata_0002.parquet").read_bytes()
    (tmp_path / "some").mkdir()
    for name in ("metadata_0002.parquet", "metadata_02.parquet"):
        (tmp_path / "some" / name).write_bytes(one)
    with pytest.raises(BadInputError, match=r"which of the 10 shards .*, each once"):
        apply_bitmap(
            tmp_path / "some", tmp_path / "out", served / "is_dup.npy", served / "cum_sz.npy"
        )
    assert not (tmp_path / "out").exists()


def test_packed_bits_and_bytes_are_the_same_bitmap(served, tmp_path):
    bitmap = np.load(served / "is_dup.npy")
    (tmp_path / "b.bits").write_bytes(np.packbits(bitmap, bitorder="little").tobytes())
    np.save(tmp_path / "column.npy", bitmap.astype(np.uint8)[:, None])
    for name in ("b.bits", "column.npy"):
        marks = Bitmap(tmp_path / name, len(bitmap))
        for start, stop in ((0, 2000), (3, 3), (5, 1234), (1999, 2000)):
            assert np.array_equal(marks.slice(start, stop), bitmap[start:stop])
    (tmp_path / "empty.bits").touch()
    with pytest.raises(BadInputError, match="0 bytes for 5 rows"):
        Bitmap(tmp_path / "empty.bits", 5)
    np.save(tmp_path / "twos.npy", np.full(5, 2, np.uint8))
    with pytest.raises(BadInputError, match="other than 0 and 1"):
        Bitmap(tmp_path / "twos.npy").slice(0, 5)
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(BadInputError, match="a bitmap is bool"):
        Bitmap(tmp_path / "labels.npy")


@pytest.mark.parametrize("order", ["little", "big"])
def test_bits_are_in_the_order_that_is_given(tmp_path, order):
    other = {"little": "big", "big": "little"}[order]
    bitmap = np.random.default_rng(1).random(1003) < 0.3
    bitmap[-3:] = True
    path = tmp_path / "b.bits"
    np.packbits(bitmap, bitorder=order).tofile(path)
    marks = Bitmap(path, 1003, order)
    for start, stop in ((0, 1003), (5, 16), (1001, 1003)):
        assert np.array_equal(marks.slice(start, stop), bitmap[start:stop])
    with pytest.raises(BadInputError, match=f"beyond the last, 1002: .*--bit-order {order}"):
        Bitmap(path, 1003, other)
    with pytest.raises(BadInputError, match="126 bytes for 1009 rows; 127 are needed"):
        Bitmap(path, 1009, order)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([3, 5], "begins with 3"),
        ([0, 5, 2], "falls"),
        ([0, 1.5], "no row"),
        ([0, np.nan], "no row"),
    ],
)
def test_offsets_of_another_form_are_refused(tmp_path, values, word):
    np.save(tmp_path / "o.npy", np.array(values))
    with pytest.raises(BadInputError, match=word):
        row_offsets.load(tmp_path / "o.npy")


def test_outputs_feed_img2dataset(mirror, served, tmp_path):
    """Its reader globs *.parquet in a folder, reads url and caption, renames, cuts into shards."""
    download(ask(mirror, tmp_path), QUICK)
    folder = tmp_path / "out" / "metadata"
    try:
        from img2dataset.reader import Reader
    except ImportError:
        urls = []
        for path in sorted(folder.glob("*.parquet")):
            table = pq.read_table(path, columns=["url", "caption"])
            for first in range(math.ceil(len(table) / 100)):
                with pa.ipc.new_file(pa.BufferOutputStream(), table.schema) as writer:
                    writer.write_table(table.slice(100 * first, 100))
            urls += table["url"].to_pylist()
    else:
        reader = Reader(str(folder), "parquet", "url", "caption", None, 100, set(), str(tmp_path))
        urls = [u for _, f in reader for u in pa.ipc.open_file(f).read_all()["url"].to_pylist()]
    wanted = pa.concat_tables([expected(served, n) for n in range(10)])["url"]
    assert urls == wanted.to_pylist() and pc.all(pc.is_valid(wanted)).as_py()
