"""`snip recut` and `snip apply`: other thresholds from the stored pairs, other copies."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from snip_assets.options import Input, Json, OutputFolder, out_folder, read_here

PANEL = "After a run"


class Match(str, Enum):
    """What the rows of another copy are matched by."""

    url = "url"
    md5 = "md5"
    both = "url+md5"
    key = "key"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("recut", rich_help_panel=PANEL)(recut)
    app.command("apply", rich_help_panel=PANEL)(apply)


def recut(
    root: Annotated[
        Path,
        typer.Argument(
            parser=out_folder, metavar="ROOT", help="Output folder or url of a finished run."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=out_folder, metavar="PATH|URL", help="Another folder for the new outputs."
        ),
    ] = None,
    max_distance: Annotated[
        list[float] | None,
        typer.Option(
            help="Smaller threshold; several, without --out, give a table. Default: a table of "
            "ten, with --out that of the run."
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="Which copy stays: neighbours, first, largest(width*height) ... Default: as in "
            "the run."
        ),
    ] = "",
    duplicate_count: Annotated[
        bool, typer.Option("--duplicate-count", help="Add a column duplicate_count.")
    ] = False,
    keep_captions: Annotated[
        bool,
        typer.Option(
            "--keep-captions",
            help="Add the captions of dropped rows to kept ones: duplicate_captions.",
        ),
    ] = False,
    memory_gb: Annotated[float, typer.Option(help="Memory to plan the table with, in GiB.")] = 4.0,
    json: Json = False,
) -> None:
    """Groups and outputs for a smaller threshold or another keep rule, without a new search.

    Without --out: a table of threshold, pairs, groups and dropped rows.
    """
    from snip_assets.engine import recut as engine
    from snip_assets.engine.errors import BadInputError
    from snip_assets.report import terminal

    keep = keep or engine.rule_of(root)
    if out is None and (duplicate_count or keep_captions):
        raise BadInputError("--duplicate-count and --keep-captions are of outputs; give --out.")
    if out is None:
        cuts = max_distance or engine.thresholds(root)
        with terminal.bars():
            rows = engine.run_curve(root, cuts, rule=keep, memory_gb=memory_gb)
        if json:
            terminal.as_json(rows)
        else:
            _table(f"Thresholds (keep rule: {keep})", rows)
        return
    # Another keep rule alone is cut where the pairs were found.
    cuts = max_distance or engine.thresholds(root)[-1:]
    if len(cuts) != 1:
        raise BadInputError("--out takes one --max-distance; several give a table, without --out.")
    with terminal.bars():
        facts = engine.recut(
            root,
            out,
            cuts[0],
            rule=keep,
            duplicate_count=duplicate_count,
            keep_captions=keep_captions,
        )
    if json:
        terminal.as_json(facts)
        return
    shown = ("max_distance", "rule", "rows", "groups", "kept", "dropped", "chained_groups")
    _table("Groups", [{name: facts[name] for name in shown}])
    for note in facts["notes"]:
        typer.echo(note)


def apply(
    drop_list: Annotated[Path, typer.Option(help="Folder of drop lists.", **Input)],
    metadata: Annotated[
        Path, typer.Option(help="Folder of the other copy's parquet files.", **Input)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the copy without the dropped rows.", **OutputFolder)
    ],
    on: Annotated[Match, typer.Option(help="What rows are matched by.")] = Match.url,
    every: Annotated[
        bool, typer.Option("--every", help="Drop rows too whose kept row this copy lacks.")
    ] = False,
    memory_gb: Annotated[float, typer.Option(help="Memory to plan with, in GiB.")] = 4.0,
    json: Json = False,
) -> None:
    """Apply drop lists to another copy of the metadata, whatever its files and row order."""
    from snip_assets.engine.apply_drop_list import On, apply_drop_list, summary
    from snip_assets.report import terminal

    with terminal.bars():
        lists, files = read_here(drop_list, metadata, written_to=out)
        result = apply_drop_list(
            lists or drop_list,
            files or metadata,
            out,
            on=cast(On, on.value),
            every=every,
            memory_gb=memory_gb,
        )
    if json:
        terminal.as_json(result)
        return
    _table("De-duplicated metadata", result["files"])
    for line in summary(result):
        typer.echo(line)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    from snip_assets.report import terminal

    # A threshold is shown as it was given, whatever its decimals.
    rows = [{k: f"{v:g}" if k == "max_distance" else v for k, v in row.items()} for row in rows]
    columns = [name.replace("_", " ") for name in rows[0]]
    terminal.table(title, columns, [terminal.cells(row) for row in rows])
