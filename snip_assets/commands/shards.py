"""`snip shards`: register shards with the engine and with Dagster."""

from __future__ import annotations

from typing import Annotated

import typer

from snip_assets.engine.wording import counted
from snip_assets.options import (
    DEFAULT_OUT,
    Features,
    Json,
    Metadata,
    Out,
    chosen_source,
    named,
)

_NOTED = "noted in ./.env: `dagster` commands in this folder work on this data set"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Register, list, withdraw and move shards.", no_args_is_help=True)
    group.command("sync")(sync)
    group.command("list")(list_shards)
    group.command("withdraw")(withdraw)
    group.command("move")(move)
    app.add_typer(group, name="shards", rich_help_panel="Stations")


def sync(
    features: Features = None,
    metadata: Metadata = None,
    out: Out = DEFAULT_OUT,
    limit_shards: Annotated[int, typer.Option(help="At most this many; 0: all.", min=0)] = 0,
) -> None:
    """Register the shards that are new; plain `dagster` commands then know them."""
    from snip_assets import graph, home
    from snip_assets.engine.settings import Settings
    from snip_assets.engine.shards import load
    from snip_assets.resources import DataSet

    source = chosen_source(features, metadata, out)
    data = DataSet.of(source, out, Settings())
    new = graph.sync(data, limit_shards)
    where = named(out)
    registry = load(data.layout)
    typer.echo(
        f"{counted(len(new), 'new shard')}, {len(registry.shards):,} in all, "
        f"{counted(registry.rows, 'row')}: {where}"
    )
    if home.remember(data.layout, source):
        typer.echo(_NOTED)
    else:
        typer.echo(
            f"`snip ui --out {where}` and `snip dagster --out {where} ...` work on it (./.env is "
            "written where a workspace.yaml names snip_assets.definitions, and for paths without "
            "quotes and dollar signs)"
        )


def list_shards(out: Out = DEFAULT_OUT, json: Json = False) -> None:
    """Show the registered shards in their order, and what is made of each."""
    from snip_assets.engine import stations
    from snip_assets.engine.errors import SnipError
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.settings import Settings
    from snip_assets.engine.storage.files import read_manifest
    from snip_assets.report import terminal

    run = stations.Run(Layout(out), Settings())
    keys = run.registry.keys
    unpaired = set(stations.unpaired(run))
    try:
        unpublished = unpaired.union(stations.unpublished(run, keys))
    except SnipError:
        # Nothing is decided yet.
        unpublished = set(keys)
    rows = [
        {
            "key": s.key,
            "ordinal": s.ordinal,
            "first row": s.start,
            "rows": s.rows,
            "dimension": s.dim,
            "pairs": s.key not in unpaired
            and read_manifest(run.layout.duplicate_pairs(s.key)) is not None,
            "published": s.key not in unpublished,
        }
        for s in run.registry.shards
    ]
    if json:
        terminal.as_json(rows)
    else:
        terminal.table(named(out), list(rows[0]), [list(row.values()) for row in rows])


def withdraw(
    keys: Annotated[list[str], typer.Argument(help="The shards registered last.")],
    out: Out = DEFAULT_OUT,
) -> None:
    """Forget the last shards and remove what was made of them; their sources are not touched."""
    from snip_assets import home, partitions
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.shards import load

    layout = Layout(out)
    with home.instance(layout) as instance:
        gone = partitions.withdraw(instance, layout, keys)
    left, where = load(layout), named(out)
    typer.echo(
        f"{len(gone)} withdrawn, {counted(len(left.shards), 'shard')} left, "
        f"{counted(left.rows, 'row')}: {where}\n"
        f"`snip dedup --out {where}` decides about the others anew; what lies in "
        f"{left.source.features} is registered again by it, and by the sensor `new_shards`: move "
        "files away that should stay out."
    )


def move(features: Features = None, metadata: Metadata = None, out: Out = DEFAULT_OUT) -> None:
    """Tell an output folder that its source folders lie elsewhere now.

    Files that were moved, or copied with their times (cp -a), are not read again.
    """
    from snip_assets import home
    from snip_assets.engine import moved
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.shards import Source, load
    from snip_assets.report import terminal

    layout = Layout(out)
    former = load(layout).source
    source = Source(features or former.features, metadata or former.metadata)
    with terminal.bars():
        registry = moved.move(layout, source)
    typer.echo(
        f"{named(out)}: {counted(len(registry.shards), 'shard')}, now in "
        f"{registry.source.features} and {registry.source.metadata}"
    )
    if home.remember(layout, registry.source):
        typer.echo(_NOTED)
