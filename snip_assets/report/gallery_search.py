"""Results of a search as one page of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from snip_assets.engine.holdings import Holdings
from snip_assets.engine.metadata import CAPTION_NAMES, URL_NAMES
from snip_assets.engine.search import Queries
from snip_assets.engine.storage.files import atomic_path

from . import site_pages
from .gallery import Card, Pictures, web
from .harmless import shorten


def write_page(
    table: pa.Table, queries: Queries, holdings: Holdings, path: Path, shown: str = "all"
) -> None:
    """Write the page; pictures are linked where they lie, none is copied.

    Parameters
    ----------
    table
        As `engine.search.search` returns it.
    queries, holdings
        What it was given.
    path
        The file to write.
    shown
        See `Settings.pictures`.
    """
    known = next((p for p in holdings.metadata if p is not None), None)
    root = known.parent.parent if known else path.parent
    pictures = Pictures(root, path.parent, None, shown)
    hits: dict[str, list[dict[str, Any]]] = {name: [] for name in queries.names}
    for line in table.to_pylist():
        hits[line["query"]].append({"card": _card(pictures, line), "distance": line["distance"]})
    own = _own(pictures, queries, holdings)
    asked = [{"name": shorten(n), "card": own.get(n), "hits": found} for n, found in hits.items()]
    text = site_pages.render(
        "search.html",
        title="Search",
        pages={},
        data_set=f"{root.name}, {holdings.rows:,} rows",
        pictures=shown,
        queries=asked,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _card(pictures: Pictures, line: dict[str, Any]) -> Card:
    url = line["url"]
    return Card(
        row=line["row"],
        shard=line["shard"],
        row_in_shard=line["row_in_shard"],
        url=shorten(url),
        link=web(url),
        source=pictures.source(url),
        caption=shorten(line["caption"]),
        size="",
    )


def _own(pictures: Pictures, queries: Queries, holdings: Holdings) -> dict[str, Card]:
    """Cards of the queries that are rows themselves."""
    rows = queries.own[queries.own >= 0]
    ordinals, inside = holdings.locate(rows)
    lines = {
        "row": rows.tolist(),
        "shard": [holdings.keys[o] for o in ordinals],
        "row_in_shard": inside.tolist(),
        "url": holdings.text(rows, URL_NAMES),
        "caption": holdings.text(rows, CAPTION_NAMES),
    }
    names = [n for n, row in zip(queries.names, queries.own, strict=True) if row >= 0]
    cards = [
        _card(pictures, dict(zip(lines, values, strict=True)))
        for values in zip(*lines.values(), strict=True)
    ]
    return dict(zip(names, cards, strict=True))
