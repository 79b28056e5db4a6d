"""`snip report`, `review`, `show`, `search --html` on a finished run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snip_assets import cli
from snip_assets.engine.storage.files import open_npy
from snip_assets.report import marks
from snip_assets_tests.report.conftest import ROWS, SCRIPT, Finished, finished

__all__ = ["finished"]
Snip = Callable[..., tuple[int, str, str]]


@pytest.fixture
def snip(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Snip:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("NO_COLOR", "")
        monkeypatch.setattr(sys, "argv", ["snip", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def test_report_prints_the_page(finished: Finished, snip: Snip) -> None:
    code, out, err = snip("report", "--out", finished.layout.root)
    assert code == 0, err
    assert Path(out.strip()).read_text().startswith("<!doctype html>")


def test_report_without_a_run_says_what_to_do(tmp_path: Path, snip: Snip) -> None:
    code, _, err = snip("report", "--out", tmp_path)
    assert code == 3
    assert "snip shards sync" in err or "materialise" in err


def test_show_a_dropped_row(finished: Finished, snip: Snip) -> None:
    kept_row = open_npy(finished.layout.duplicate_groups / "kept_row.npy")
    row = int(np.flatnonzero(kept_row != np.arange(len(kept_row)))[0])
    code, out, err = snip("show", row, "--out", finished.layout.root, "-k", 3, "--json")
    assert code == 0, err
    known = json.loads(out)
    assert known["kept"] is False and known["kept_row"] == int(kept_row[row])
    assert f"row {known['kept_row']}, which stays" in known["why"]
    assert len(known["nearest"]) == 3 and known["group_size"] >= 2


def test_show_by_url_with_markup_in_the_caption(finished: Finished, snip: Snip) -> None:
    url = "javascript:document.title='taken'"
    code, out, err = snip("show", url, "--out", finished.layout.root, "-k", 0)
    assert code == 0, err
    assert f"Row {ROWS}" in out and "<script>" in out


def test_show_what_is_not_there(finished: Finished, snip: Snip) -> None:
    assert snip("show", 10**9, "--out", finished.layout.root)[0] == 2
    code, _, err = snip("show", "images/none.jpg", "--out", finished.layout.root)
    assert code == 2 and "no row" in err


def test_an_empty_text_is_no_query(finished: Finished, snip: Snip) -> None:
    code, _, err = snip("search", "--text", " ", "--out", finished.layout.root)
    assert code == 2 and "empty" in err


def test_a_search_that_cannot_end_well_is_not_begun(
    finished: Finished, tmp_path: Path, snip: Snip
) -> None:
    code, _, err = snip("search", "--row", 3, "--out", tmp_path / "nosuch", "--to", "hits.txt")
    assert code == 2 and "hits.txt: name it .parquet or .json" in err
    code, _, err = snip("search", "--row", 3, "--out", tmp_path / "nosuch")
    assert code == 2 and "nosuch: no shards are registered there" in err
    code, _, err = snip("recut", finished.layout.root, "--duplicate-count")
    assert code == 2 and "give --out" in err


def test_review_counts(finished: Finished, tmp_path: Path, snip: Snip) -> None:
    path = tmp_path / "marks.csv"
    path.write_text("row,earlier_row,set,mark\n5,3,outside,wrong\n6,3,outside,right\n")
    try:
        code, out, err = snip("review", "--marks", path, "--out", finished.layout.root, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["new"] == 2 and found["shares"]["outside"]["successes"] == 1
        path.write_text("row,earlier_row,set,mark\n5,5,random,wrong\n")
        assert snip("review", "--marks", path, "--out", finished.layout.root)[0] == 2
    finally:
        marks.path_of(finished.layout).unlink(missing_ok=True)


def test_search_as_a_page(finished: Finished, tmp_path: Path, snip: Snip) -> None:
    file = tmp_path / "hits.html"
    arguments = ("--out", finished.layout.root, "--row", ROWS, "--row", 3, "-k", 40)
    code, _, err = snip("search", *arguments, "--html", file, "--json")
    assert code == 0, err
    text = file.read_text()
    assert SCRIPT not in text and "&lt;script&gt;" in text
    sources = [part.split('"')[0] for part in text.split('img src="')[1:]]
    local = [s for s in sources if not s.startswith("http")]
    assert local and all((tmp_path / s).resolve().is_file() for s in local)


def test_search_as_a_page_shows_the_pictures_that_the_report_may(
    finished: Finished, tmp_path: Path, snip: Snip
) -> None:
    file, kept = tmp_path / "hits.html", finished.layout.settings
    arguments = ("search", "--out", finished.layout.root, "--row", 3, "--html", file)
    kept.write_text('{"pictures": "none"}')
    try:
        assert snip(*arguments)[0] == 0
        assert "<img" not in file.read_text()
        assert snip(*arguments, "--pictures", "all")[0] == 0
        assert "<img" in file.read_text()
    finally:
        kept.unlink()


def test_a_bitmap_is_verified_at_the_threshold_of_its_folder(
    finished: Finished, tmp_path: Path, snip: Snip
) -> None:
    layout = finished.layout
    bitmap = layout.dup_bitmap / "dup_bitmap.npy"
    arguments = ("verify", "--bitmap", bitmap, "--out", layout.root, "--to", tmp_path, "--json")

    def confirmed(*given: object) -> float:
        code, out, err = snip(*arguments, *given)
        assert code == 0, err
        return float(json.loads(out)["confirmed"])

    wide, narrow = confirmed(), confirmed("--max-distance", 1e-5)
    assert narrow < wide
    layout.settings.write_text('{"max_distance": 1e-5}')
    try:
        assert confirmed() == narrow
        assert confirmed("--max-distance", 0.1) == wide
    finally:
        layout.settings.unlink()


def test_help_groups_commands_and_names_exit_codes(snip: Snip) -> None:
    code, out, _ = snip("--no-color", "--help")
    assert code == 0 and "\x1b[3" not in out
    for words in ("Look at the data", "Examples", "Exit codes", "--install-completion"):
        assert words in out
