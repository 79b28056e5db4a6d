"""`snip download`, `apply-bitmap`, `fetch`, `verify`: what others published, applied."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snip_assets.engine.storage.remote_files import as_path
from snip_assets.options import (
    Input,
    Json,
    OutputFolder,
    named,
    out_folder,
    read_here,
    use_noted,
    written_folder,
)

if TYPE_CHECKING:
    from snip_assets.engine.apply_bitmap import Applied
    from snip_assets.engine.catalogue import Catalogue

PANEL = "Published by others"
DATA_SET = "laion2b-en-vit-h-14"


class Order(str, Enum):
    """Order of the bits in a byte."""

    little = "little"
    big = "big"


Offsets = Annotated[
    str | None,
    typer.Option(
        help="Row offsets (cumulative sizes, .npy): file, url or Drive id; or `footers`: read "
        "them from the footers of the shards.",
        show_default="found where needed",
    ),
]
BitOrderOption = Annotated[
    Order,
    typer.Option(
        help="Of a .bits file: the first row is the lowest bit of a byte (little), or the highest "
        "(big, as numpy.packbits has it by itself)."
    ),
]
OwnCatalogue = Annotated[
    Path | None, typer.Option("--catalogue", help="A catalogue file of one's own.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("download", rich_help_panel=PANEL)(download)
    app.command("apply-bitmap", rich_help_panel=PANEL)(apply_bitmap)
    app.command("fetch", rich_help_panel=PANEL)(fetch)
    app.command("verify", rich_help_panel=PANEL)(verify)


def download(
    out: Annotated[
        Path, typer.Argument(parser=written_folder, metavar="OUT", help="Output folder or url.")
    ] = Path("data/downloaded"),
    start: Annotated[int, typer.Option(help="First shard.", min=0)] = 0,
    end: Annotated[
        int | None, typer.Option(help="Shard after the last.", show_default="all")
    ] = None,
    metadata_url: Annotated[
        str | None,
        typer.Option(
            help="Where the metadata shards are: a url or path with {shard:04d} or {key}, or a "
            "folder of metadata_{key}.parquet.",
            show_default=f"that of {DATA_SET}",
        ),
    ] = None,
    bitmap: Annotated[
        str | None,
        typer.Option(
            help="Bitmap of duplicates, .npy or .bits: url, Drive id or file.",
            show_default=f"that of {DATA_SET}",
        ),
    ] = None,
    offsets: Offsets = None,
    dl_dedup_set: Annotated[
        bool, typer.Option(help="Fetch the bitmap; else use the one that is in OUT already.")
    ] = True,
    dl_dedup_set_value: Annotated[
        str | None,
        typer.Option("--dl_dedup_set", metavar="True|False", help="The authors' spelling of it."),
    ] = None,
    outfolder: Annotated[
        Path | None,
        typer.Option(parser=written_folder, help="The authors' spelling of OUT.", hidden=True),
    ] = None,
    keep_originals: Annotated[
        bool, typer.Option(help="Keep the shards as downloaded, in OUT/originals.")
    ] = False,
    at_once: Annotated[int, typer.Option(help="Downloads at the same time.", min=1, max=64)] = 4,
    again: Annotated[
        bool, typer.Option(help="Fetch and write what is there once more: the files may differ.")
    ] = False,
    bit_order: BitOrderOption = Order.little,
    catalogue: OwnCatalogue = None,
    json: Json = False,
) -> None:
    """Download metadata shards and write the rows that the bitmap does not mark."""
    from snip_assets.engine import published
    from snip_assets.engine.storage.remote import Policy
    from snip_assets.report import terminal

    files = _catalogue(catalogue)
    known = files.data_set(DATA_SET)
    whole = metadata_url is None
    if whole and offsets is None and start > 0:
        offsets = files[known.offsets].location
    request = published.Request(
        out=outfolder or out,
        metadata=metadata_url or known.metadata,
        bitmap=bitmap or files[known.bitmap].location,
        start=start,
        end=end,
        offsets=offsets,
        fetch_bitmap=_truth(dl_dedup_set_value, dl_dedup_set),
        keep_originals=keep_originals,
        shards=known.shards if whole else None,
        again=again,
        bit_order=bit_order.value,
    )
    with terminal.bars():
        done = published.download(request, Policy(at_once=at_once))
    _report(done, request.out / "metadata", json)


def apply_bitmap(
    metadata: Annotated[
        Path,
        typer.Argument(
            parser=as_path, metavar="METADATA", help="Folder or url of metadata shards (.parquet)."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(parser=written_folder, metavar="OUT", help="Output folder or url.")
    ],
    bitmap: Annotated[
        Path, typer.Option(help="Bitmap of duplicates: .npy or .bits, true = drop.", **Input)
    ],
    offsets: Annotated[
        Path | None,
        typer.Option(help="Row offsets; without them METADATA must hold all shards.", **Input),
    ] = None,
    bit_order: BitOrderOption = Order.little,
    json: Json = False,
) -> None:
    """Write the rows of a folder of metadata that a bitmap does not mark."""
    from snip_assets.engine import apply_bitmap as engine
    from snip_assets.report import terminal

    with terminal.bars():
        files, marks, bounds = read_here(metadata, bitmap, offsets, written_to=out)
        done = engine.apply_bitmap(files or metadata, out, marks or bitmap, bounds, bit_order.value)
    _report(done, out, json)


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="bitmap, model, index, offsets, labels, or a name of the catalogue."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.", **OutputFolder)] = Path(
        "data/published"
    ),
    location: Annotated[
        str | None, typer.Option("--from", help="Another place of the file: url, Drive id, path.")
    ] = None,
    again: Annotated[bool, typer.Option(help="Fetch what is there once more.")] = False,
    catalogue: OwnCatalogue = None,
    json: Json = False,
) -> None:
    """Fetch published files by name; without a name, list them."""
    from snip_assets.engine import fetch as engine
    from snip_assets.engine.layout import local
    from snip_assets.report import terminal

    known = _catalogue(catalogue)
    if not names:
        columns = ["name", "kind", "format", "location", "note"]
        rows = [[getattr(f, c) for c in columns] for f in known.files]
        if json:
            terminal.as_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            terminal.table("Published files", columns, rows)
        return
    if location and len(names) > 1:
        raise typer.BadParameter("--from goes with one name")
    wanted = [known[name].wanted(local(out), location) for name in names]
    with terminal.bars():
        if len(wanted) == 1:  # its bar then knows the total
            fetched = [engine.fetch(wanted[0], again=again)]
        else:
            fetched = list(engine.fetch_all(wanted, again=again))
    if json:
        terminal.as_json([f.__dict__ for f in fetched])
        return
    for file in fetched:
        state = f"{file.transferred:,} bytes came" if file.transferred else "nothing had to come"
        typer.echo(f"{named(file.path)}: {file.bytes:,} bytes ({state})")


def verify(
    bitmap: Annotated[str, typer.Option(help="Bitmap of duplicates: file, url or Drive id.")],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=out_folder,
            metavar="PATH|URL",
            help="Output folder of `snip dedup` with its index and shards.",
        ),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Any FAISS index of the rows, instead of ours.", **Input)
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of img_emb_{key}.npy.", **Input)
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="Folder of metadata_{key}.parquet.", **Input)
    ] = None,
    offsets: Annotated[Path | None, typer.Option(help="Row offsets, .npy.", **Input)] = None,
    model: Annotated[
        Path | None, typer.Option(help="SNIP net that made the index's features.", **Input)
    ] = None,
    sample: Annotated[int, typer.Option(help="Marked rows to look at.", min=1)] = 1000,
    k: Annotated[
        int, typer.Option("-k", help="Hits that are looked at for each.", min=1, max=10_000)
    ] = 16,
    probes: Annotated[int, typer.Option(help="Inverted lists searched; 0 chooses.", min=0)] = 0,
    max_distance: Annotated[
        float | None,
        typer.Option(
            help="Duplicates within this distance.",
            show_default="as the last `snip dedup` into --out had it, else 0.1",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    bit_order: BitOrderOption = Order.little,
    to: Annotated[
        Path, typer.Option(help="Folder of the pairs, CSV and Parquet.", **OutputFolder)
    ] = Path("data/verified"),
    json: Json = False,
) -> None:
    """Sample rows that a bitmap marks, find what they duplicate, print the precision."""
    from snip_assets.engine import verify_bitmap as engine
    from snip_assets.engine.contents import format_of
    from snip_assets.engine.fetch import localise
    from snip_assets.engine.published import bitmap_name
    from snip_assets.engine.searcher import open_searcher
    from snip_assets.report import terminal

    with terminal.bars():
        known = use_noted(out)
        index, features, metadata = read_here(index, features, metadata, written_to=to)
        offsets, model = read_here(offsets, model)
        searcher = open_searcher(out, index, features, metadata, offsets, model, probes)
        name = bitmap_name(bitmap)
        marks = localise(bitmap, to, name, format_of(name))
        near = known.max_distance if max_distance is None else max_distance
        found = engine.verify_bitmap(
            marks,
            searcher,
            to,
            sample=sample,
            k=k,
            max_distance=near,
            seed=seed,
            bit_order=bit_order.value,
        )
    values = found.as_dict()
    values |= {name: named(Path(values[name])) for name in ("csv", "parquet")}
    if json:
        terminal.as_json(values)
    else:
        terminal.table("Verified", ["", ""], list(values.items()))


def _catalogue(path: Path | None) -> Catalogue:
    from snip_assets.engine import catalogue

    return catalogue.load(path or catalogue.OWN)


def _truth(value: str | None, default: bool) -> bool:
    if value is None:
        return default
    if value.lower() in ("true", "1", "yes"):
        return True
    if value.lower() in ("false", "0", "no"):
        return False
    raise typer.BadParameter(f"--dl_dedup_set {value}: True or False")


def _report(done: Applied, place: Path, json: bool) -> None:
    from snip_assets.report import terminal

    values: dict[str, Any] = {
        "files": done.files,
        "of these done before": done.skipped,
        "rows": done.rows,
        "dropped": done.dropped,
        "kept": done.kept,
        "written to": named(place),
    }
    if done.missing:
        values["shards not there"] = ", ".join(done.missing[:20])
    if json:
        told = {"missing": done.missing, "proven": done.proven, "by_name": done.by_name}
        terminal.as_json(values | told)
        return
    terminal.table("De-duplicated metadata", ["", ""], list(values.items()))
    if done.by_name:
        typer.echo(
            "The files were taken in the order of their numbers: no shards.json lies beside the "
            "bitmap or the offsets to tell another."
        )
    if not done.proven:
        typer.echo(
            "The bitmap is long enough for these shards; that it is not too long can be told only "
            "with --offsets or with the last shard."
        )
