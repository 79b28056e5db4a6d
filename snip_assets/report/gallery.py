"""Rows as pictures: what a page shows of a row, and where its picture may come from.

All that a data set says is text to be escaped. A picture comes from http(s), from a `data:image`
url, or from a file below the folder that holds the metadata folder; nothing else is ever linked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xxhash

from snip_assets.engine.shards import Registry
from snip_assets.engine.storage.remote_files import is_remote

from .harmless import shorten
from .shown_rows import look_up

LONGEST_DATA = 1 << 16
LARGEST_COPY = 1 << 18
MOST_COPIED_BYTES = 1 << 26
_WEB = re.compile(r"https?://[^\s\x00-\x20/?#][^\x00-\x1f\x7f]{0,4000}", re.IGNORECASE)
_ENCODED = str.maketrans({c: f"%{ord(c):02X}" for c in ' "<>\\`'})
_DATA = re.compile(r"data:image/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]+", re.IGNORECASE)
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif"}


@dataclass(frozen=True)
class Card:
    """A row as it is shown.

    Attributes
    ----------
    source
        For an `img`; None shows a placeholder.
    link
        http(s) only; None where the url is anything else.
    url, caption
        Text, cut; for eyes only.
    texts
        Both as they are.
    """

    row: int
    shard: str
    row_in_shard: int
    url: str
    link: str | None
    source: str | None
    caption: str
    size: str
    texts: tuple[str | None, str | None] = (None, None)


def web(url: str | None) -> str | None:
    """The url if it is http(s); blanks, quotes and brackets are encoded as a browser would."""
    return url.translate(_ENCODED) if url is not None and _WEB.fullmatch(url) else None


class Pictures:
    """Sources of pictures for a page.

    Small local files are copied beside the page under the digest of their contents, at most
    64 MiB of them; larger ones are linked where they lie.

    Parameters
    ----------
    root
        Folder that relative urls belong to; where it is remote they have no picture.
    page_folder
        Where the page will lie at last.
    copies
        Folder to copy into; None links every file where it lies.
    shown
        See `Settings.pictures`.
    """

    def __init__(
        self, root: Path, page_folder: Path, copies: Path | None, shown: str = "all"
    ) -> None:
        self.root = None if is_remote(root) else root.resolve()
        self.page_folder = page_folder.resolve()
        self.copies = copies
        self.shown = shown
        self.copied = 0

    def source(self, url: str | None) -> str | None:
        """What an `img` may load for this url, or None."""
        if not url or self.shown == "none":
            return None
        if (address := web(url)) is not None:
            return address if self.shown == "all" else None
        if len(url) <= LONGEST_DATA and _DATA.fullmatch(url):
            return url
        path = self._local(url)
        if path is None or (ending := _ending(path)) is None:
            return None
        size = path.stat().st_size
        if self.copies is None or size > LARGEST_COPY or self.copied + size > MOST_COPIED_BYTES:
            return quote(os.path.relpath(path, self.page_folder))
        return self._copy(path, ending)

    def _copy(self, path: Path, ending: str) -> str:
        assert self.copies is not None
        data = path.read_bytes()
        name = xxhash.xxh3_64_hexdigest(data) + ending
        target = self.copies / name
        if not target.exists():
            self.copies.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            self.copied += len(data)
        return f"{self.copies.name}/{name}"

    def _local(self, url: str) -> Path | None:
        """The file that a relative url means, if it lies below the root."""
        if self.root is None or not url.isprintable():
            return None
        if ":" in url or "\\" in url or url.startswith("//"):
            return None
        for name in (url, unquote(url)):
            try:
                path = (self.root / name).resolve()
                if path.is_relative_to(self.root) and path.is_file():
                    return path
            except (OSError, ValueError):
                continue
        return None


def _ending(path: Path) -> str | None:
    """The ending for a file that begins as a picture does."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(16)
    except OSError:
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    return next((ending for magic, ending in _MAGIC.items() if head.startswith(magic)), None)


def root_of(registry: Registry) -> Path:
    """The folder that relative urls belong to: the parent of the metadata folder."""
    return registry.source.metadata.parent


class Cards:
    """Rows to cards; reads the columns of many rows at once.

    Parameters
    ----------
    registry
        The data set.
    pictures
        Where pictures come from.
    kept
        File of what was looked up the last time, see `shown_rows`.
    """

    def __init__(self, registry: Registry, pictures: Pictures, kept: Path) -> None:
        self.registry, self.pictures, self.kept = registry, pictures, kept

    def of(self, rows: Sequence[int] | np.ndarray) -> dict[int, Card]:
        """Cards by row id. Memory: the cards, and these columns of one row group a thread."""
        wanted = np.unique(np.asarray(rows, np.int64))
        found = look_up(self.registry, wanted, self.kept).to_pylist()
        return {
            row: self._card(row, line) for row, line in zip(wanted.tolist(), found, strict=True)
        }

    def _card(self, row: int, line: dict[str, Any]) -> Card:
        url, width, height = (line[name] for name in ("url", "width", "height"))
        return Card(
            row=row,
            shard=line["shard"],
            row_in_shard=line["row_in_shard"],
            url=shorten(url),
            link=web(url),
            source=self.pictures.source(url),
            caption=shorten(line["caption"]),
            size=f"{shorten(width)} × {shorten(height)}" if _known(width, height) else "",
            texts=(url, line["caption"]),
        )


def _known(*numbers: str | None) -> bool:
    return all(number and number != "nan" for number in numbers)
