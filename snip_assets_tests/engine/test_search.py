"""Search through any index: the hits are those of exact search where the index is exact."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import model, search, shards, stations
from snip_assets.engine.errors import BadInputError, SnipError
from snip_assets.engine.features import normalised
from snip_assets.engine.layout import Layout
from snip_assets.engine.searcher import open_searcher
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.engine.storage.files import write_json
from snip_assets.report.gallery_row import about
from snip_assets_tests import mirror as faulty

from .station_tools import until_pairs

OFFSETS = np.cumsum([0, *faulty.LENGTHS])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten shards, a net, an exact index of its features, an IVF index, one by shards."""
    folder = tmp_path_factory.mktemp("data")
    faulty.make(folder)
    table, features = faulty.sample_rows()
    net = model.pca(features, 64)
    model.save_model(net, folder / "net", {})
    x = net(__import__("torch").from_numpy(features.astype(np.float32))).numpy()
    flat = faiss.IndexFlatL2(64)
    flat.add(x)
    faiss.write_index(flat, str(folder / "flat.index"))
    ivf = faiss.index_factory(64, "IVF16,SQ8")
    ivf.train(x)
    ivf.add(x)
    faiss.write_index(ivf, str(folder / "ivf.index"))
    (folder / "by_shards").mkdir()
    for first, end in ((0, 4), (4, 9), (9, 10)):  # ids restart at 0 in each
        part = faiss.IndexFlatL2(64)
        part.add(x[OFFSETS[first] : OFFSETS[end]])
        faiss.write_index(part, str(folder / "by_shards" / f"{first:04d}_{end - 1:04d}.index"))
    return folder, table, features.astype(np.float32), x


def opened(folder, index="flat.index", **changes):
    places = {
        "index": folder / index,
        "metadata": folder / "metadata",
        "features": folder / "img_emb",
        "offsets": folder / "cum_sz.npy",
        "model": folder / "net",
    }
    return open_searcher(**{**places, **changes})


def nearest(x, row, k):
    distance = ((x - x[row]) ** 2).sum(1)
    distance[row] = np.inf
    return np.argsort(distance, kind="stable")[:k]


def test_a_row_finds_its_neighbours_and_not_itself(data):
    folder, table, _, x = data
    searcher = opened(folder)
    found = search.search(searcher, search.of_rows(searcher, [700, 1999]), k=5)
    for row in (700, 1999):
        hits = found.filter(np.array(found["query"]) == f"row {row}")
        want = nearest(x, row, 5)
        assert np.allclose(hits["distance"], ((x[want] - x[row]) ** 2).sum(1), atol=1e-4)
        assert row not in hits["row"].to_pylist() and hits["rank"].to_pylist() == [1, 2, 3, 4, 5]
    rows = found["row"].to_numpy()
    assert found["url"].to_pylist() == [table["url"][r].as_py() for r in rows]
    assert found["caption"].to_pylist() == [table["caption"][r].as_py() for r in rows]
    place = [OFFSETS[int(s)] + r for s, r in zip(*(found[c].to_pylist() for c in
             ("shard", "row_in_shard")), strict=True)]  # fmt: skip
    assert place == rows.tolist()


def test_indices_by_shards_answer_as_one(data):
    folder, *_ = data
    whole, parts = opened(folder), opened(folder, "by_shards")
    queries = search.of_rows(whole, [3, 900, 1640])
    assert search.search(whole, queries, 20)["row"].equals(search.search(parts, queries, 20)["row"])
    wrong = np.cumsum([0, *reversed(faulty.LENGTHS)])
    np.save(folder / "wrong.npy", wrong)
    with pytest.raises(BadInputError, match="shard 0 has 369"):
        opened(folder, "by_shards", offsets=folder / "wrong.npy")


def test_reranking_by_raw_features_gives_the_exact_order(data):
    folder, _, features, _ = data
    searcher = opened(folder, "ivf.index", probes=16)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = search.search(searcher, search.of_rows(searcher, [42]), 10, "raw", depth=2000)
    want = nearest(unit, 42, 10)
    exact = ((unit[want] - unit[42]) ** 2).sum(1)
    assert np.allclose(found["distance"], exact, atol=1e-5)
    with pytest.raises(BadInputError, match="no SNIP features"):
        search.search(searcher, search.of_rows(searcher, [42]), 10, "snip")


def test_a_depth_beyond_all_rows_is_all_rows(data):
    searcher = opened(data[0], "ivf.index", probes=16)
    queries = search.of_rows(searcher, [42])
    found = search.search(searcher, queries, 10, "raw", depth=10**25)
    assert found.equals(search.search(searcher, queries, 10, "raw", depth=2000))


def test_url_npy_and_what_fits_not(data, tmp_path):
    folder, table, features, _ = data
    searcher = opened(folder)
    url = table["url"][1000].as_py()
    by_url = search.search(searcher, search.of_url(searcher, url), 3)
    np.save(tmp_path / "query.npy", features[1000])
    by_file = search.search(searcher, search.of_npy(tmp_path / "query.npy"), 4)
    assert set(by_url["row"].to_pylist()) <= set(by_file["row"].to_pylist())
    with pytest.raises(BadInputError, match="no row"):
        search.of_url(searcher, "http://nowhere/x.png")
    with pytest.raises(BadInputError, match="row ids go from 0 to 1999"):
        search.of_rows(searcher, [2000])
    with pytest.raises(BadInputError, match=f"row {10**30}: row ids"):
        search.of_rows(searcher, [0, 10**30])
    np.save(tmp_path / "query.npy", np.ones(7, np.float32))
    with pytest.raises(BadInputError, match="the query has 7 numbers, but 64 or 512"):
        search.search(searcher, search.of_npy(tmp_path / "query.npy"))
    np.save(tmp_path / "query.npy", np.eye(2, 512, 1, np.float32) * [[1], [0]])
    with pytest.raises(BadInputError, match=r"query.npy: row 1: .* only zeros"):
        search.of_npy(tmp_path / "query.npy")


def test_a_row_without_a_direction_is_no_query(data, tmp_path):
    features = data[2]
    x = features[:5].copy()
    x[3, 7] = np.nan
    np.save(tmp_path / "img_emb_0000.npy", x)
    flat = faiss.IndexFlatL2(512)
    flat.add(features[:5])
    faiss.write_index(flat, str(tmp_path / "flat.index"))
    searcher = open_searcher(index=tmp_path / "flat.index", features=tmp_path)
    assert np.allclose(search.of_rows(searcher, [2]).features, x[[2]], atol=1e-4)
    with pytest.raises(BadInputError, match="row 3: its features hold NaN"):
        search.of_rows(searcher, [2, 3])
    np.save(tmp_path / "img_emb_0000.npy", x[:, 0])
    with pytest.raises(BadInputError, match=r"img_emb_0000.npy: float32, shape \(5,\)"):
        open_searcher(index=tmp_path / "flat.index", features=tmp_path)


def test_the_length_of_a_query_does_not_matter(data):
    searcher = opened(data[0])
    searcher.net = model.SnipNet([512, 96, 64])  # unlike a PCA's, its layers add something
    query = data[2][:3].astype(np.float64)
    for length in (1e-15, 1e-13, 1e14):
        assert np.allclose(searcher.encode(query * length), searcher.encode(query), atol=1e-5)


def test_missing_shards_are_missing_not_wrong(data, tmp_path):
    folder, table, _, _ = data
    for kind in ("metadata", "img_emb"):
        (tmp_path / kind).mkdir()
    for n in (0, 7):
        for name in (f"metadata/metadata_{n:04d}.parquet", f"img_emb/img_emb_{n:04d}.npy"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
    searcher = opened(folder, metadata=tmp_path / "metadata", features=tmp_path / "img_emb")
    found = search.search(searcher, search.of_rows(searcher, [1200]), 200)
    for row, url in zip(found["row"].to_pylist(), found["url"].to_pylist(), strict=True):
        here = OFFSETS[0] <= row < OFFSETS[1] or OFFSETS[7] <= row < OFFSETS[8]
        assert url == (table["url"][row].as_py() if here else None)
    with pytest.raises(BadInputError, match="shard 0001 are not at hand"):
        search.of_rows(searcher, [OFFSETS[1]])
    with pytest.raises(BadInputError, match="shard 1 is missing"):
        opened(folder, metadata=tmp_path / "metadata", features=None, offsets=None)


def test_a_query_by_snip_features_does_not_go_through_the_net_again(tmp_path):
    """Also where raw features have as many numbers, and those of its shard are not at hand."""
    random = np.random.default_rng(0)
    source = Source(tmp_path / "img_emb", tmp_path / "metadata")
    for folder in (source.features, source.metadata):
        folder.mkdir()
    for key in ("0", "1"):
        np.save(source.features / f"img_emb_{key}.npy", random.normal(size=(300, 128)))
        pq.write_table(pa.table({"url": ["u"] * 300}), source.metadata / f"metadata_{key}.parquet")
    layout = Layout(tmp_path / "out")
    register(layout, source)
    until_pairs(stations.Run(layout, Settings()))
    held = np.load(layout.snip_features("1")).astype(np.float32)
    (source.features / "img_emb_1.npy").unlink()
    searcher = open_searcher(layout.root)
    query = search.of_rows(searcher, [310])
    assert query.encoded and search.finest(searcher, query) == "none"
    np.testing.assert_allclose(
        searcher.encode(query.features, query.encoded)[0], normalised(held[10:11])[0], atol=1e-6
    )
    assert len(search.search(searcher, query, 5)) == 5
    with pytest.raises(BadInputError, match="raw features are not at hand"):
        search.search(searcher, query, 5, "raw")
    assert len(about(layout, 310, 5)["nearest"]) == 5


def test_our_own_index_answers_as_its_plain_faiss_export(data, tmp_path):
    from snip_assets.engine import index
    from snip_assets.engine.searcher import FaissIndex, OwnIndex
    from snip_assets.engine.trained import TrainedIndex

    x, layout = data[3], Layout(tmp_path)
    trained = TrainedIndex.train(x, 12, "SQ8")
    layout.trained_index.mkdir()
    trained.save(layout.trained_index / "trained.index")
    parts = []
    for start, stop in ((0, 900), (900, 2000)):
        part = x[start:stop]
        home = trained.assigner.nearest(part, 1)[0][:, 0]
        order = np.argsort(home, kind="stable")
        folder = layout.index_shards(str(start))
        folder.mkdir(parents=True)
        ends = np.cumsum([0, *np.bincount(home, minlength=trained.lists)])
        codes = trained.codec.encode(part - trained.centroids[home])
        np.save(folder / "list_offsets.npy", ends)
        np.save(folder / "codes.npy", codes[order])
        np.save(folder / "rows.npy", order.astype(np.uint32))
        parts.append(index.ListFolder(folder, start))
    index.merge(parts, layout.snip_index / "one", 2000)
    write_json(layout.snip_index / "segments.json", [{"name": "one"}])
    own = OwnIndex(layout)
    faiss.write_index(own.index.to_faiss(), str(tmp_path / "plain.index"))
    plain = FaissIndex(tmp_path / "plain.index")
    for probes in (1, 5, 12):
        own.set_probes(probes)
        plain.set_probes(probes)
        (near, ids), (want, want_ids) = own.search(x[::97], 10), plain.search(x[::97], 10)
        assert np.allclose(near, want, atol=1e-4)
        assert (ids == want_ids).mean() > 0.98  # ties, and rounding between near equals
    assert own.rows == 2000


def test_folders_that_are_named_meet_the_index_of_a_run_in_its_order(tmp_path):
    """Shards that came later have later rows, whatever their numbers."""
    x = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    folders = {"features": tmp_path / "img_emb", "metadata": tmp_path / "metadata"}
    for folder in folders.values():
        folder.mkdir()
    layout = Layout(tmp_path / "out")
    for key, rows in (("0001", x[:30]), ("0000", x[30:])):
        np.save(folders["features"] / f"img_emb_{key}.npy", rows)
        pq.write_table(
            pa.table({"url": [key] * 30}), folders["metadata"] / f"metadata_{key}.parquet"
        )
        shards.register(layout, shards.Source(**folders))
    run = stations.Run(layout, Settings())
    until_pairs(run)
    searcher = open_searcher(layout.root, **folders, probes=100)
    found = search.search(searcher, search.of_rows(searcher, [0]), 3, "raw").to_pydict()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = np.argsort(-(unit @ unit[0]), kind="stable")[1:4]
    assert found["row"] == exact.tolist()
    assert found["url"] == [("0001", "0000")[row // 30] for row in exact]


def test_so_many_lists_are_searched_as_hold_the_rows_that_are_asked_for(data):
    searcher = opened(data[0], "ivf.index")
    queries = search.of_rows(searcher, [3, 900, 1640])
    for k in (100, 1000, 1999):
        hits = (
            search.search(searcher, queries, k, "raw")
            .group_by("query")
            .aggregate([([], "count_all")])
        )
        assert hits["count_all"].to_pylist() == [k] * 3
    searcher.index.set_probes(1)  # as wanted, all the same
    assert len(search.search(searcher, queries, 1999)) < 3 * 1999


def test_more_hits_are_no_worse_than_few(data, tmp_path):
    folder, _, features, x = data
    codes = faiss.index_factory(64, "PQ8x4")
    codes.train(x)
    codes.add(x)
    faiss.write_index(codes, str(tmp_path / "codes.index"))
    searcher, rows = opened(folder, tmp_path / "codes.index"), [3, 42, 900, 1640]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = search.search(searcher, search.of_rows(searcher, rows), 150, "raw")
    hits = found["row"].to_numpy().reshape(len(rows), -1)
    right = [
        np.isin(nearest(unit, row, 150), own).mean() for row, own in zip(rows, hits, strict=True)
    ]
    assert np.mean(right) > 0.8  # fewer where the hits alone are sorted again


def test_results_as_files(data, tmp_path):
    folder, *_ = data
    searcher = opened(folder)
    found = search.search(searcher, search.of_rows(searcher, [5]), 3)
    search.write(found, tmp_path / "hits.parquet")
    search.write(found, tmp_path / "hits.json")
    assert pq.read_table(tmp_path / "hits.parquet").equals(found)
    assert json.loads((tmp_path / "hits.json").read_text()) == found.to_pylist()


def test_an_index_that_is_none(tmp_path, data):
    (tmp_path / "page.index").write_bytes(faulty.PAGE)
    with pytest.raises(BadInputError, match="not a readable FAISS index"):
        opened(data[0], index=tmp_path / "page.index")


def test_texts_and_images_with_an_untrained_model(data, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from PIL import Image

    from snip_assets.engine.clip import Clip

    clip = Clip("ViT-B-32", "")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    for row in (clip.text("a red square"), clip.image(tmp_path / "red.png")):
        assert row.shape == (1, 512) and np.isclose(np.linalg.norm(row), 1, atol=1e-5)
        searcher = opened(data[0])
        queries = search.Queries(row, ["query"], np.array([-1]))
        assert len(search.search(searcher, queries, 7, "raw")) == 7
    with pytest.raises(BadInputError, match="not a readable image"):
        clip.image(data[0] / "cum_sz.npy")
    with pytest.raises(SnipError, match=r"--clip-weights"):
        Clip("ViT-B-32", str(tmp_path / "absent.pt"))
    assert "ViT-B-32" in open_clip.list_models()


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    import sys

    from snip_assets.engine.clip import Clip

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BadInputError, match=r"pip install 'snip_assets\[clip\]'"):
        Clip("ViT-B-32", "")
