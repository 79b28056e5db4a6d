"""One command a station, for those who want to run them one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snip_assets.engine.layout import WHOLE, Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.wording import counted
from snip_assets.options import DEFAULT_OUT, Json, Out, named, with_settings, written_file

if TYPE_CHECKING:
    from snip_assets.engine.stations import Run
    from snip_assets.engine.storage.files import Manifest

Keys = Annotated[
    list[str] | None, typer.Option("--key", help="A shard; may be repeated. Default: all.")
]
_SHOWN = (
    "rows",
    "dim",
    "method",
    "why",
    "pairs",
    "groups",
    "dropped",
    "kept",
    "seconds",
    "peak_memory",
)
PANEL = "Stations"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    index = typer.Typer(help="Make the index, or export it.", invoke_without_command=True)
    index.callback(invoke_without_command=True)(with_settings(make_index))
    index.command("export")(export_index)
    app.command("check", rich_help_panel=PANEL)(with_settings(check))
    app.command("train", rich_help_panel=PANEL)(with_settings(train))
    app.command("compress", rich_help_panel=PANEL)(with_settings(compress))
    app.add_typer(index, name="index", rich_help_panel=PANEL)
    app.command("pairs", rich_help_panel=PANEL)(with_settings(pairs))
    app.command("groups", rich_help_panel=PANEL)(with_settings(groups))
    app.command("publish", rich_help_panel=PANEL)(with_settings(publish))


def check(settings: Settings, key: Keys = None, out: Out = DEFAULT_OUT, json: Json = False) -> None:
    """Read the registered shards whole once; refuse what is malformed."""
    from snip_assets.engine import stations
    from snip_assets.report import terminal

    with terminal.bars():
        stations.read_metadata(stations.Run(Layout(out), settings), key)
    _run(settings, out, json, ("metadata", key), ("clip_features", key))


def train(settings: Settings, out: Out = DEFAULT_OUT, json: Json = False) -> None:
    """Train the SNIP net (a PCA for little data)."""
    _run(settings, out, json, ("snip_model", None))


def compress(
    settings: Settings, key: Keys = None, out: Out = DEFAULT_OUT, json: Json = False
) -> None:
    """Make SNIP features of the raw features."""
    _run(settings, out, json, ("snip_features", key))


def make_index(
    context: typer.Context, settings: Settings, out: Out = DEFAULT_OUT, json: Json = False
) -> None:
    """Train the index, encode all shards, merge them."""
    if context.invoked_subcommand is None:
        names = ("trained_index", "index_shards", "snip_index")
        _run(settings, out, json, *((name, None) for name in names))


def export_index(
    file: Annotated[
        Path, typer.Argument(parser=written_file, metavar="FILE", help="The file or url to write.")
    ],
    out: Out = DEFAULT_OUT,
) -> None:
    """Write the index as one plain FAISS file, for `faiss.read_index` and clip-retrieval."""
    from snip_assets.engine import index

    index.export(Layout(out), file)
    typer.echo(f"{named(file)}: {file.stat().st_size:,} bytes")


def pairs(settings: Settings, key: Keys = None, out: Out = DEFAULT_OUT, json: Json = False) -> None:
    """Find each row's earlier duplicates: candidates from the index, verified."""
    _run(settings, out, json, ("duplicate_pairs", key))


def groups(settings: Settings, out: Out = DEFAULT_OUT, json: Json = False) -> None:
    """Join pairs to groups, choose who stays, write the bitmap."""
    _run(settings, out, json, ("duplicate_groups", None), ("dup_bitmap", None))


def publish(
    settings: Settings,
    key: Keys = None,
    to: Annotated[
        str | None,
        typer.Option(help="Copy the result here afterwards: a url (s3://...) or a folder."),
    ] = None,
    all_outputs: Annotated[
        bool,
        typer.Option(
            "--all-outputs", help="With --to: copy the outputs of all stations, and the report."
        ),
    ] = False,
    out: Out = DEFAULT_OUT,
    json: Json = False,
) -> None:
    """Write the cleaned metadata and the lists of dropped rows; copy the result to a url."""
    if to == "":
        raise typer.BadParameter("--to is empty; give a url or a folder")
    if all_outputs and not to:
        raise typer.BadParameter("--all-outputs goes with --to")
    _run(settings, out, json, ("deduped_metadata", key), ("drop_list", key))
    if to:
        from snip_assets.engine.copy_out import copy_out

        count = copy_out(Layout(out), to, every=all_outputs)
        typer.echo(
            f"{to}: {counted(count.copied, 'file')} copied, {count.there:,} there before, "
            f"{count.bytes:,} bytes",
            err=json,
        )


def _run(settings: Settings, out: Path, json: bool, *wanted: tuple[str, list[str] | None]) -> None:
    """Run stations by name, each over some shards (None: all), and show their manifests."""
    from snip_assets.engine import stations
    from snip_assets.report import terminal

    run = stations.Run(Layout(out), settings)
    rows: list[dict[str, Any]] = []
    with terminal.bars():
        for name, keys in wanted:
            rows += _manifests(getattr(stations, name), name, run, keys)
    if json:
        terminal.as_json(rows)
    else:
        columns = [c for c in ("station", "shard", *_SHOWN, "bytes") if any(c in r for r in rows)]
        for row in rows:
            if (peak := row.get("peak_memory")) is not None:
                row["peak_memory"] = f"{peak / 1e9:.2f} GB"
        terminal.table(named(out), columns, [[r.get(c) for c in columns] for r in rows])


def _manifests(
    station: Callable[..., Any], name: str, run: Run, keys: list[str] | None
) -> list[dict[str, Any]]:
    from snip_assets.engine.fanout import fan_out

    if name in WHOLE:
        return [_row(name, None, station(run))]
    manifests = fan_out(station, run, keys or run.registry.keys)
    return [_row(name, k, m) for k, m in manifests.items()]


def _row(name: str, key: str | None, manifest: Manifest) -> dict[str, Any]:
    facts = {k: v for k, v in manifest.facts.items() if k in _SHOWN}
    return {"station": name, "shard": key, **facts, "bytes": manifest.bytes}
