"""Where a picture may come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from snip_assets.report import gallery
from snip_assets.report.gallery import Pictures, web
from snip_assets.report.harmless import LONGEST, shorten

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for name in ("a.jpg", "b c.jpg", "100%.jpg"):
        (root / "images" / name).write_bytes(JPEG + name.encode())
    (root / "images" / "page.jpg").write_text("<html><script>alert(1)</script>")
    (root / "images" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return Pictures(root, tmp_path / "report", tmp_path / "report" / "images")


def test_no_host_is_asked_for_a_picture_when_only_local_ones_are_shown(pictures: Pictures) -> None:
    urls = ("https://example.org/a.jpg", "images/a.jpg")
    shown = {}
    for what in ("all", "local", "none"):
        pictures.shown = what
        shown[what] = [pictures.source(url) is not None for url in urls]
    assert shown == {"all": [True, True], "local": [False, True], "none": [False, False]}


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "vbscript:x",
        "data:text/html,<script>alert(1)</script>",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        "file:///etc/hostname",
        "//example.org/a.jpg",
        "\\\\host\\share\\a.jpg",
        "ftp://example.org/a.jpg",
        "https://",
        "https:///a.jpg",
        "https://example.org/a\nb.jpg",
        "../secret.jpg",
        "images/../../secret.jpg",
        "%2e%2e/secret.jpg",
        "images/link.jpg",
        "images/page.jpg",
        "images/drawing.svg",
        "images/none.jpg",
        "images",
        "",
        "a" * 5000,
        None,
    ],
)
def test_refused(pictures: Pictures, url: str | None) -> None:
    assert pictures.source(url) is None


def test_secret_by_its_whole_path_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    assert pictures.source(str(tmp_path / "secret.jpg")) is None


@pytest.mark.parametrize("url", ["http://example.org/a.jpg", "HTTPS://example.org/%20?x=1&y"])
def test_web_is_taken_as_it_is(pictures: Pictures, url: str) -> None:
    assert pictures.source(url) == url == web(url)


def test_odd_urls_of_the_web_are_encoded() -> None:
    url = """https://example.org/a b's "c"<d>.jpg"""
    assert web(url) == "https://example.org/a%20b's%20%22c%22%3Cd%3E.jpg"


@pytest.mark.parametrize(
    "url", ["images/a.jpg", "images/b c.jpg", "images/b%20c.jpg", "images/100%.jpg"]
)
def test_local_files_are_copied_once_by_content(pictures: Pictures, url: str) -> None:
    source = pictures.source(url)
    assert source is not None and source == pictures.source(url)
    assert (pictures.page_folder / source).read_bytes().startswith(JPEG)


def test_large_files_are_linked_where_they_lie(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "LARGEST_COPY", 10)
    assert pictures.source("images/b c.jpg") == "../data/images/b%20c.jpg"


def test_data_of_a_picture_is_taken(pictures: Pictures) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    assert pictures.source(url) == url
    assert web(url) is None


def test_text_is_cut_and_cannot_steer() -> None:
    assert shorten("a\x1b[31m\u202eb\n") == "a [31m b "
    assert len(shorten("x" * 10_000)) == LONGEST + 1
    assert shorten(None) == ""
    # Joiners belong to the words of Persian and Indic languages, and to emoji.
    for text in (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f680",
        "co\u00adop",
    ):
        assert shorten(text) == text
