"""The pages in a real browser: slider, marking, keyboard, paging, hostile data.

Needs Chromium and the extra `browser`; without them these tests are skipped with a warning.
"""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snip_assets.engine.audit import wilson
from snip_assets.report import marks, site

from .conftest import Finished

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTHS = (400, 1400)


def _skip(reason: str) -> None:
    warnings.warn(f"the pages are NOT tested in a browser: {reason}", stacklevel=2)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip("playwright is not installed: pip install 'snip_assets[browser]'")
    named = os.environ.get("SNIP_CHROMIUM", "")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        _skip("no chromium: apt-get install chromium, or name it in SNIP_CHROMIUM")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(finished: Finished) -> Path:
    site.dedup_report(finished.run)
    return finished.layout.dedup_report


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a fresh profile; any error of a script and any refused script fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.route("http*://**", lambda route: route.abort())
    opened = context.new_page()
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda m: said.append(m.text) if "Content Security" in m.text else None)
    opened.on("dialog", lambda dialog: dialog.accept())
    yield opened
    context.close()
    assert said == []


def _open(page: Any, folder: Path, name: str) -> None:
    page.goto((folder / f"{name}.html").as_uri())


def _pressed(page: Any, place: int) -> list[str]:
    pair = page.locator(".pair").nth(place)
    return pair.locator("button[aria-pressed=true]").all_inner_texts()


def test_the_slider_shows_each_threshold(page: Any, folder: Path) -> None:
    _open(page, folder, "curves")
    slider, said = page.locator("#threshold"), page.locator("#thresholds output")
    rows = page.locator("tr[data-threshold]")
    assert rows.last.get_attribute("data-dropped") in said.inner_text()
    right = float(page.locator(".marker").get_attribute("cx"))
    slider.focus()
    page.keyboard.press("Home")
    assert said.inner_text().startswith("0: drops ")
    assert float(page.locator(".marker").get_attribute("cx")) < right
    page.keyboard.press("ArrowRight")
    row = rows.nth(1)
    assert said.inner_text().startswith(f"{row.get_attribute('data-threshold')}: drops ")
    assert "chosen" in row.get_attribute("class")
    assert slider.get_attribute("aria-valuetext") == said.inner_text()


def test_keys_mark_and_move_on_and_marks_last(page: Any, folder: Path) -> None:
    _open(page, folder, "pairs")
    tally = page.locator(".tally output")
    assert tally.inner_text().startswith("nothing marked yet, 60")
    for key in "rrrw":  # the first leads to the first pair in sight
        page.keyboard.press(key)
    assert [_pressed(page, i) for i in range(4)] == [["Right"], ["Right"], ["Wrong"], []]
    found = wilson(2, 3)
    expected = f"2 right of 3 marked: 66.7% (95%: {found.low:.1%} to {found.high:.1%}), 57 to go"
    assert tally.inner_text() == expected
    page.keyboard.press("k")  # back to the third
    page.keyboard.press("w")  # the same key takes the mark back
    assert _pressed(page, 2) == []
    page.reload()
    assert [_pressed(page, i) for i in range(3)] == [["Right"], ["Right"], []]
    page.locator(".clear").first.click()
    assert tally.inner_text().startswith("nothing marked yet")


def test_exported_marks_are_what_review_takes(
    page: Any, folder: Path, finished: Finished, tmp_path: Path
) -> None:
    _open(page, folder, "pairs")
    page.locator(".pair button.wrong").nth(4).click()
    _open(page, folder, "borderline")
    page.locator("[data-set=inside][data-kind=inside].pair button.right").first.click()
    taken_back = page.locator("[data-set=outside].pair button.right").last
    taken_back.click()
    taken_back.click()
    page.locator("[data-set=outside].pair button.wrong").first.click()
    with page.expect_download() as download:
        page.locator(".export").first.click()
    path = tmp_path / "marks.csv"
    download.value.save_as(path)
    with open(path, newline="") as handle:
        exported = list(csv.DictReader(handle))
    assert sorted((m["set"], m["mark"]) for m in exported) == [
        ("inside", "right"),
        ("outside", "none"),
        ("outside", "wrong"),
        ("random", "wrong"),
    ]
    try:
        assert marks.take_in(finished.layout, path)["new"] == 3
        site.dedup_report(finished.run)
        _open(page, folder, "index")
        assert "reviewed" in page.locator("main").inner_text()
        context = page.context.browser.new_context()
        other = context.new_page()  # a browser that knows none of the marks
        _open(other, folder, "borderline")
        assert other.locator("[data-set=inside] button[aria-pressed=true]").count() == 1
        context.close()
    finally:
        marks.path_of(finished.layout).unlink()
        site.dedup_report(finished.run)


def test_two_pages_side_by_side_keep_each_others_marks(page: Any, folder: Path) -> None:
    _open(page, folder, "pairs")
    other = page.context.new_page()
    _open(other, folder, "borderline")
    page.locator(".pair button.right").nth(1).click()
    other.locator("[data-set=outside].pair button.wrong").first.click()
    page.locator(".pair button.right").nth(2).click()
    for shown in (page, other):
        shown.reload()
    assert [_pressed(page, i) for i in (1, 2)] == [["Right"], ["Right"]]
    assert other.locator("[data-set=outside] button[aria-pressed=true]").count() == 1


def test_no_pair_out_of_sight_is_marked(page: Any, folder: Path) -> None:
    _open(page, folder, "pairs")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight / 2)")
    page.keyboard.press("w")
    assert page.locator("button[aria-pressed=true]").count() == 0
    assert page.evaluate("window.scrollY") > 500
    page.keyboard.press("w")
    assert page.locator("button[aria-pressed=true]").count() == 1
    assert _pressed(page, 0) == []


def test_pictures_stay_blurred_until_told_otherwise(page: Any, folder: Path) -> None:
    _open(page, folder, "pairs")
    picture = page.locator(".frame img").nth(3)
    blurred = "e => getComputedStyle(e).filter !== 'none'"
    assert not picture.evaluate(blurred)
    page.keyboard.press("b")
    _open(page, folder, "copied")
    assert page.locator(".frame img").nth(3).evaluate(blurred)
    page.locator("button.blur").click()
    page.reload()
    assert not page.locator(".frame img").nth(3).evaluate(blurred)


@pytest.mark.parametrize("name", ["index", "curves", "copied"])
def test_all_can_be_reached_without_a_mouse(page: Any, folder: Path, name: str) -> None:
    page.set_viewport_size({"width": WIDTHS[0], "height": 800})
    _open(page, folder, name)
    unreached = "all => all.filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0).length"
    assert page.locator(".scroll").evaluate_all(unreached) == 0
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => +e.tagName[1])")
    assert all(below <= above + 1 for above, below in pairwise(levels))
    landmarks = page.locator("nav, [role=navigation], [role=region]")
    names = landmarks.evaluate_all("all => all.map(e => e.ariaLabel)")
    assert len(names) == len(set(names))


def test_lists_turn_their_pages_by_link_and_key(page: Any, folder: Path) -> None:
    _open(page, folder, "copied")
    first = page.locator(".group h2").first.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/copied-2.html")
    assert page.locator(".group h2").first.inner_text().startswith("11. ")
    page.locator("a[rel=prev]").first.click()
    page.wait_for_url("**/copied.html")
    assert page.locator(".group h2").first.inner_text() == first


@pytest.mark.parametrize("name", ["copied", "pairs", "borderline", "doubtful", "curves"])
def test_hostile_data_does_nothing(page: Any, folder: Path, name: str) -> None:
    for file in sorted(folder.glob(f"{name}*.html")):
        page.goto(file.as_uri())
        assert "taken" not in page.title()
        links = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.protocol)")
        assert set(links) <= {"file:", "http:", "https:"}
        assert page.evaluate("document.querySelectorAll('[onerror],[onmouseover]').length") == 0


def test_a_picture_that_is_gone_leaves_a_note(page: Any, folder: Path) -> None:
    for file in sorted(folder.glob("copied*.html")):
        page.goto(file.as_uri())
        gone = page.locator("img[src^='http://127.0.0.1:9']")
        if gone.count():
            gone.first.scroll_into_view_if_needed()
        try:
            page.wait_for_selector(".frame.gone:text('no picture: gone')", timeout=2_000)
            return
        except Exception:
            continue
    pytest.fail("no page shows the picture that is gone")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_the_screen(
    browser: Any, folder: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    for name in ("index", "curves", "copied", "pairs", "borderline", "doubtful"):
        _open(page, folder, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for pair in (("--ink", "--paper"), ("--soft", "--card"), ("--accent", "--card")):
            assert page.evaluate(CONTRAST, list(pair)) >= 4.5
    context.close()


# Contrast of two colours by WCAG 2.1.
CONTRAST = """([ink, paper]) => {
  const light = (name) => {
    const probe = document.createElement("canvas").getContext("2d");
    probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const parts = [1, 3, 5].map((i) => parseInt(probe.fillStyle.slice(i, i + 2), 16) / 255);
    const [r, g, b] = parts.map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
