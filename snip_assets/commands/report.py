"""`snip report`, `snip review`, `snip show`: look at the result, judge it, ask about a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snip_assets.engine.settings import Settings
from snip_assets.options import DEFAULT_OUT, Json, Out, use_noted, with_settings

PANEL = "Look at the data"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report", rich_help_panel=PANEL)(with_settings(report))
    app.command("review", rich_help_panel=PANEL)(review)
    app.command("show", rich_help_panel=PANEL)(show)


def report(
    settings: Settings,
    out: Out = DEFAULT_OUT,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
) -> None:
    """Write the report, pages to look at, unless it is current.

    Threshold and tier are those that the pairs were found with. Example: snip report --open
    """
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.run import Run
    from snip_assets.engine.storage.files import require
    from snip_assets.report import terminal
    from snip_assets.report.site import dedup_report

    layout = Layout(out)
    with terminal.bars():
        manifest = dedup_report(Run(layout, settings))
        # All pages, where the report was made on another machine.
        require(layout.dedup_report, "dedup_report", "full")
    index = (layout.dedup_report / "index.html").resolve()
    if json:
        terminal.as_json({"page": str(index), "bytes": manifest.bytes, **manifest.facts})
    else:
        typer.echo(index)
    if open_page:
        typer.launch(index.as_uri())


def review(
    file: Annotated[
        Path,
        typer.Option("--marks", help="CSV of marks, exported from the report's pages of pairs."),
    ],
    out: Out = DEFAULT_OUT,
    json: Json = False,
) -> None:
    """Take in what people marked right or wrong; the next report and its check count it.

    Example: snip review --marks marks.csv
    """
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.recut import thresholds
    from snip_assets.report import marks, terminal

    use_noted(out)
    layout = Layout(out)
    taken = marks.take_in(layout, file)
    found = marks.shares(marks.current(layout), thresholds(out)[-1])
    if json:
        shares = {kind: interval.__dict__ for kind, interval in found.items()}
        terminal.as_json({**taken, "shares": shares})
        return
    typer.echo(", ".join(f"{count:,} {name}" for name, count in taken.items()))
    if taken["outdated"]:
        typer.echo(
            "Outdated marks give another distance than their rows have now: the rows were replaced "
            "since, or the file was edited. They do not count. Write the report and mark the rows "
            "of now."
        )
    columns = ["pairs", "right", "marked", "share", "95% from", "to"]
    rows = [[k, i.successes, i.trials, i.estimate, i.low, i.high] for k, i in found.items()]
    terminal.table("Marked", columns, rows)


def show(
    name: Annotated[str, typer.Argument(metavar="ROW|URL", help="A row id, or a url.")],
    out: Out = DEFAULT_OUT,
    nearest: Annotated[int, typer.Option("-k", help="Nearest rows.", min=0, max=1000)] = 10,
    json: Json = False,
) -> None:
    """Tell everything about one row: shard, metadata, group, why it was dropped, nearest rows.

    Example: snip show 1234
    """
    from rich.markup import escape

    from snip_assets.engine.layout import Layout
    from snip_assets.report import gallery_row, terminal

    layout = Layout(out)
    use_noted(out)
    known = gallery_row.about(layout, gallery_row.find(layout, name), nearest)
    if json:
        terminal.as_json(known)
        return

    metadata = known.pop("metadata")
    tables = {key: known.pop(key) for key in ("earlier_duplicates", "nearest") if key in known}
    for title, line in ((f"Row {known['row']}", known), ("Metadata", metadata)):
        rows = zip(map(escape, line), terminal.cells(line), strict=True)
        terminal.table(title, ["", ""], list(rows))
    for title, lines in tables.items():
        columns = list(lines[0]) if lines else ["none"]
        terminal.table(
            title.replace("_", " ").capitalize(), columns, [terminal.cells(v) for v in lines]
        )
