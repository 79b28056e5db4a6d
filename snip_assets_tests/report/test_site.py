"""The pages: right numbers, same bytes, harmless whatever the data says."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import audit, choices, shards
from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage.files import manifest_path, open_npy, read_manifest
from snip_assets.options import SAMPLE, SAMPLE_FEATURES, SAMPLE_METADATA
from snip_assets.report import gallery_groups, gallery_pairs, site, site_data

from .conftest import HARM, SCRIPT, Finished, materialise

PAGES = {"index", "curves", "copied", "pairs", "borderline", "doubtful"}


class Page(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(finished: Finished) -> dict[str, Page]:
    site.dedup_report(finished.run)
    return {p.stem: Page(p) for p in finished.layout.dedup_report.glob("*.html")}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_outputs_give_the_same_bytes(finished: Finished, pages: dict[str, Page]) -> None:
    before, stat = _bytes(finished.layout.dedup_report), finished.layout.dedup_report.stat()
    assert {*PAGES} <= {*pages}
    site.dedup_report(finished.run)
    assert finished.layout.dedup_report.stat().st_ino == stat.st_ino  # current: not written again
    manifest_path(finished.layout.dedup_report).unlink()
    settings = Settings(**{**finished.run.settings.__dict__, "workers": 1})
    site.dedup_report(Run(finished.layout, settings))
    after = _bytes(finished.layout.dedup_report)
    # The number of threads is a setting that the page shows.
    assert {k: v for k, v in after.items() if k != "index.html"} == {
        k: v for k, v in before.items() if k != "index.html"
    }


def test_the_summary_tells_what_it_takes_to_repeat_the_run(
    finished: Finished, pages: dict[str, Page]
) -> None:
    shown, settings = pages["index"].text, finished.run.settings.__dict__
    assert all(
        f"{name}" in shown for name in (*settings, "memory at most", "inverted lists", "net, why")
    )
    for output in (finished.layout.dup_bitmap, finished.layout.trained_index):
        manifest = read_manifest(output)
        assert manifest is not None and manifest.version in shown
        assert 2**24 < manifest.facts["peak_memory"] < 2**36


def test_nothing_that_the_data_says_acts(pages: dict[str, Page]) -> None:
    shown = "".join(page.text for page in pages.values())
    assert SCRIPT in shown  # as text
    assert "{{ 7 * 7 }}" in shown and "\x1b" not in shown
    for page in pages.values():
        assert [tag for tag, _ in page.elements].count("script") == 1
        for _, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                _harmless(attributes.get(name))


def _harmless(link: str | None) -> None:
    if link is None:
        return
    allowed = (
        "http://127.0.0.1:9/gone.png",
        "https://example.org/a.jpg?%3Cscript%3E",
        "images/",
        "#main",
        "most_copied.",
    )
    assert link.startswith(allowed) or link.split("-")[0].removesuffix(".html") in PAGES, link
    assert "gone.jpg" not in link and "passwd" not in link


def test_every_page_works_without_the_network(finished: Finished, pages: dict[str, Page]) -> None:
    for page in pages.values():
        for tag, attributes in page.elements:
            link = attributes.get("src") or (attributes.get("href") if tag == "a" else None)
            if link and not link.startswith(("http", "#")):
                assert (finished.layout.dedup_report / link).is_file(), link
            if tag == "img":
                assert attributes["alt"] and attributes["loading"] == "lazy"
        assert "link" not in {tag for tag, _ in page.elements}


def test_the_threshold_table_ends_at_the_run_itself(finished: Finished) -> None:
    run = site_data.as_made(finished.run)
    cuts, share = site_data.thresholds(run)
    dropped = int(open_npy(run.layout.dup_bitmap / "dup_bitmap.npy").sum())
    assert cuts[-1]["dropped"] == dropped and share == 1
    assert [c["max_distance"] for c in cuts] == sorted(c["max_distance"] for c in cuts)


def test_many_thresholds_are_estimated_from_some_groups(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = site_data.as_made(finished.run)
    exact, _ = site_data.thresholds(run)
    monkeypatch.setattr(choices, "THRESHOLD_PAIRS", exact[-1]["pairs"] // 2)
    cuts, share = site_data.thresholds(run)
    assert 0.4 < share < 0.6 and cuts[-1] == exact[-1]
    for cut, true in zip(cuts, exact, strict=True):
        # Of some 200 groups that are looked at.
        assert abs(cut["dropped"] - true["dropped"]) < 0.1 * exact[-1]["dropped"]


def test_matrix_and_hosts_count_every_pair_and_row(finished: Finished) -> None:
    run = finished.run
    keys, counts = site_data.shard_matrix(run)
    pairs = [pq.read_table(run.layout.duplicate_pairs(k)) for k in run.registry.keys]
    assert keys == run.registry.keys and counts.sum(1).tolist() == [len(p) for p in pairs]
    hosts, looked_at = site_data.domains(run)
    drop = open_npy(run.layout.dup_bitmap / "dup_bitmap.npy")
    assert looked_at == run.registry.rows == sum(h["rows"] for h in hosts)
    assert sum(h["dropped"] for h in hosts) == int(drop.sum())
    assert {"example.org", "127.0.0.1"} <= {h["host"] for h in hosts}


def _distance(finished: Finished, a: int, b: int) -> float:
    from snip_assets.engine.shards import raw_features

    x = raw_features(finished.run.registry).take(np.array([a, b])).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return float(((x[0] - x[1]) ** 2).sum())


def test_groups_are_the_largest_and_the_widest(finished: Finished) -> None:
    labels = open_npy(finished.layout.duplicate_groups / "labels.npy")
    sizes = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    groups, doubtful = gallery_groups.largest_and_doubtful(finished.run, 20)
    assert [g.size for g in groups] == sizes[:20].tolist()
    for group in (*groups, *doubtful):
        for member in group.members:
            assert labels[member.row] == labels[group.representative] == group.group
            found = _distance(finished, member.row, group.representative)
            assert abs(found - member.distance) < 1e-5
    spreads = [g.spread for g in doubtful]
    assert spreads == sorted(spreads, reverse=True)


def test_members_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_groups, "BLOCK", 7)
    labels = np.array([0, 1, 0, 3, 1, 0, 6, 1, 0, 9, 0, 1], np.uint32)
    found = gallery_groups.members(labels, np.array([1, 0]), 4)
    assert {k: v.tolist() for k, v in found.items()} == {0: [0, 2, 5, 8], 1: [1, 4, 7, 11]}


def test_borderline_pairs_lie_on_their_side(finished: Finished) -> None:
    run, most = finished.run, finished.run.settings.max_distance
    _, inside = gallery_pairs.random_and_inside(run)
    assert inside
    for pair in inside:
        found = _distance(finished, pair.row, pair.earlier_row)
        assert 0.5 * most <= found <= most + 1e-6 and abs(found - pair.raw) < 1e-6
    misses = gallery_pairs.just_outside(run)
    assert misses
    for pair in misses:
        assert most - 1e-6 < _distance(finished, pair.row, pair.earlier_row) <= 1.5 * most + 1e-6
        assert pair.earlier_row < pair.row


def test_pairs_that_were_shown_stay_when_others_arrive(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, files = finished.run, site_data.pair_files(finished.run)

    def drawn(files: list[Path], count: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(gallery_pairs, "pair_files", lambda run: files)
        pairs, _ = gallery_pairs.random_and_inside(run, count)
        return [(p.row, p.earlier_row) for p in pairs]

    before, after = drawn(files[:2], 40), drawn(files, 40)
    arrived = set(pq.read_table(files[2])["row"].to_pylist())
    old = [pair for pair in after if pair[0] not in arrived]
    assert 0 < len(old) < 40 and before[: len(old)] == old
    # Any first part is a sample too.
    assert drawn(files, 7) == after[:7]
    whole = sum(pq.read_metadata(path).num_rows for path in files)
    assert len(set(drawn(files, whole + 1))) == whole


def test_near_misses_of_some_shards_keep_their_row_ids(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_pairs, "MOST_SEARCHED", 500)
    for pair in gallery_pairs.just_outside(finished.run):
        found = _distance(finished, pair.row, pair.earlier_row)
        assert abs(found - pair.distance) < 1e-5


def test_near_misses_are_searched_for_once(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, before = finished.layout.near_misses, gallery_pairs.just_outside(finished.run)
    monkeypatch.setattr(gallery_pairs, "_search_outside", _fail)
    assert gallery_pairs.just_outside(finished.run) == before
    note.write_text(note.read_text().replace("0.", "1.", 1))
    for count in (len(before), 7):
        # Damaged, and of another subject.
        with pytest.raises(AssertionError):
            gallery_pairs.just_outside(finished.run, count)
    monkeypatch.undo()
    assert gallery_pairs.just_outside(finished.run) == before


def _fail(*_: object) -> None:
    raise AssertionError("searched")


def test_the_report_looks_at_no_shard_that_was_refused(tmp_path: Path) -> None:
    source = Source(tmp_path / "f", tmp_path / "m")
    for folder, given in zip(("f", "m"), (SAMPLE_FEATURES, SAMPLE_METADATA), strict=True):
        shutil.copytree(given, tmp_path / folder)
    run = Run(Layout(tmp_path / "out"), Settings(workers=2))
    shards.register(run.layout, source)
    refused = source.features / "img_emb_0001.npy"
    np.save(refused, np.load(refused)[:7])
    materialise(run, [key for key in run.registry.keys if key != "0001"])
    assert gallery_pairs.just_outside(run)


def test_a_net_of_any_width_is_reported_on(tmp_path: Path) -> None:
    run = Run(Layout(tmp_path / "out"), Settings(dim=40, codec="PQ8"))
    shards.register(run.layout, SAMPLE, ["0000"])
    materialise(run, ["0000"])
    assert site_data.made_otherwise(run) == []
    assert site.dedup_report(run).facts["rows"] == 500


def test_the_exports_hold_what_is_shown(finished: Finished, pages: dict[str, Page]) -> None:
    table = pq.read_table(finished.layout.dedup_report / "most_copied.parquet")
    with open(finished.layout.dedup_report / "most_copied.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == len(table) > 100
    assert not any(line["caption"].startswith("=") for line in lines)
    texts = table["caption"].to_pylist()
    assert HARM[2][1] in texts and SCRIPT in texts


def test_precision_and_recall_are_the_audit_s(finished: Finished) -> None:
    found: dict[str, Any] = site_data.quality(finished.run)
    assert found["precision"] == audit.pair_precision(finished.run, choices.AUDITED_PAIRS, 0)
    assert found["recall"] == audit.query_recall(finished.run, choices.AUDITED_ROWS, 0)


def test_local_pictures_ask_no_host(finished: Finished, pages: dict[str, Page]) -> None:
    def hosts(page: Page) -> int:
        sources = [dict(found).get("src") or "" for tag, found in page.elements if tag == "img"]
        return sum(source.startswith("http") for source in sources)

    assert sum(map(hosts, pages.values()))
    site.dedup_report(
        Run(finished.layout, dataclasses.replace(finished.run.settings, pictures="local"))
    )
    for path in finished.layout.dedup_report.glob("*.html"):
        assert not hosts(Page(path))
        assert "img-src 'self' data: file:;" in path.read_text()
    site.dedup_report(finished.run)


def test_another_keep_rule_is_refused(finished: Finished) -> None:
    from snip_assets.engine import stations

    run = Run(finished.layout, Settings(keep="largest(original_width)"))
    # The rule that the groups were made with is found again.
    assert site_data.as_made(run).settings.keep == "neighbours"
    with pytest.raises(StaleOutputError, match="duplicate_groups"):
        site_data.as_made(stations.Run(type(finished.layout)(Path("nowhere")), Settings()))
