"""`snip search`: nearest rows of a row, a url, features, a text or an image."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snip_assets.options import (
    Input,
    Json,
    OutputFile,
    default_out,
    out_folder,
    read_here,
    use_noted,
)

if TYPE_CHECKING:
    from snip_assets.engine.search import Queries
    from snip_assets.engine.searcher import Searcher

QUERY = "Query, one of"
DATA = "Index and data"


class RerankOption(str, Enum):
    """Features to sort the first hits by again."""

    auto = "auto"
    none = "none"
    snip = "snip"
    raw = "raw"


class PicturesOption(str, Enum):
    """As `Settings.pictures`."""

    all = "all"
    local = "local"
    none = "none"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search", rich_help_panel="Look at the data")(search)


def search(
    row: Annotated[
        list[int] | None, typer.Option(help="Row id; may be repeated.", rich_help_panel=QUERY)
    ] = None,
    url: Annotated[str | None, typer.Option(help="Url of a row.", rich_help_panel=QUERY)] = None,
    npy: Annotated[
        Path | None, typer.Option(help="Features, .npy.", rich_help_panel=QUERY, **Input)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A text (extra `clip`).", rich_help_panel=QUERY)
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="An image file (extra `clip`).", rich_help_panel=QUERY, **Input),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=out_folder,
            metavar="PATH|URL",
            help="Output folder of `snip dedup`.",
            show_default="SNIP_OUT or out/demo, where no other data is named",
            rich_help_panel=DATA,
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Any FAISS index, or a folder of them by shards, instead of ours.",
            rich_help_panel=DATA,
            **Input,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of img_emb_{key}.npy.", rich_help_panel=DATA, **Input),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="Folder of metadata_{key}.parquet.", rich_help_panel=DATA, **Input),
    ] = None,
    offsets: Annotated[
        Path | None, typer.Option(help="Row offsets, .npy.", rich_help_panel=DATA, **Input)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="SNIP net of the index.", rich_help_panel=DATA, **Input)
    ] = None,
    clip_model: Annotated[str, typer.Option(help="open_clip's name.")] = "ViT-H-14",
    clip_weights: Annotated[
        str, typer.Option(help="open_clip's tag of the weights, or their file.")
    ] = "laion2b_s32b_b79k",
    k: Annotated[int, typer.Option("-k", help="Hits.", min=1, max=10_000)] = 10,
    probes: Annotated[int, typer.Option(help="Inverted lists searched; 0 chooses.", min=0)] = 0,
    rerank: Annotated[
        RerankOption,
        typer.Option(
            help="Sort the first hits again by their distance in these features; `none` leaves "
            "that of the codes, which is coarser. `auto`: raw, where all raw features are at hand."
        ),
    ] = RerankOption.auto,
    depth: Annotated[
        int, typer.Option(help="Hits that are sorted again, at the least 4 k.", min=1, max=100_000)
    ] = 100,
    write: Annotated[
        Path | None, typer.Option("--to", help="Write the hits: .json or .parquet.", **OutputFile)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the hits as a page of pictures.", **OutputFile)
    ] = None,
    pictures: Annotated[
        PicturesOption | None,
        typer.Option(
            envvar="SNIP_PICTURES",
            help="On that page: of hosts on the web too, local ones, none.",
            show_default="as the last `snip dedup` into --out had it, else all",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print the k nearest rows."""
    from snip_assets.engine import search as engine
    from snip_assets.engine.searcher import open_searcher
    from snip_assets.report import terminal

    if sum(q is not None for q in (row or None, url, npy, text, image)) != 1:
        raise typer.BadParameter("give one of --row, --url, --npy, --text, --image")
    if text is not None and not text.strip():
        raise typer.BadParameter("the text of --text is empty")
    if write is not None:
        engine.check_name(write)
    if not any((out, index, features, metadata, offsets)):
        out = default_out()
    known = use_noted(out)
    with terminal.bars():
        npy, image, index = read_here(npy, image, index)
        features, metadata, offsets, model = read_here(features, metadata, offsets, model)
    searcher = open_searcher(out, index, features, metadata, offsets, model, probes)
    queries = _queries(searcher, row, url, npy, text, image, clip_model, clip_weights)
    by = engine.finest(searcher, queries) if rerank is RerankOption.auto else rerank.value
    found = engine.search(searcher, queries, k, by, depth)
    if write is not None:
        engine.write(found, write)
    if html is not None:
        from snip_assets.report.gallery_search import write_page

        which = pictures.value if pictures else known.pictures
        write_page(found, queries, searcher.holdings, html, which)
    if json:
        terminal.as_json(found.to_pylist())
    else:
        shown = [c for c in found.column_names if c != "row_in_shard"]
        rows = [terminal.cells(line) for line in found.select(shown).to_pylist()]
        terminal.table(f"queries: {len(queries.names)}", shown, rows)


def _queries(
    searcher: Searcher,
    row: list[int] | None,
    url: str | None,
    npy: Path | None,
    text: str | None,
    image: Path | None,
    clip_model: str,
    clip_weights: str,
) -> Queries:
    import numpy as np

    from snip_assets.engine import search as engine
    from snip_assets.engine.clip import Clip

    if row:
        return engine.of_rows(searcher, list(dict.fromkeys(row)))
    if url is not None:
        return engine.of_url(searcher, url)
    if npy is not None:
        return engine.of_npy(npy)
    clip = Clip(clip_model, clip_weights)
    found = clip.text(text) if text is not None else clip.image(image or Path())
    return engine.Queries(found, [text or str(image)], np.array([-1]))
