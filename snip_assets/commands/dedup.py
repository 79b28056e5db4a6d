"""`snip dedup`: the whole graph with one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from snip_assets.engine.layout import STATIONS
from snip_assets.engine.settings import Settings
from snip_assets.garbage import loading
from snip_assets.options import (
    DEFAULT_OUT,
    Features,
    Json,
    Metadata,
    Out,
    chosen_source,
    with_settings,
)

if TYPE_CHECKING:
    from snip_assets.resources import DataSet

# `decisions` writes no file.
_AFTER = STATIONS.index("dup_bitmap") + 1
_ORDER = (*STATIONS[:_AFTER], "decisions", *STATIONS[_AFTER:], "dedup_report")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dedup", rich_help_panel="The whole graph")(with_settings(dedup))


def dedup(
    settings: Settings,
    features: Features = None,
    metadata: Metadata = None,
    out: Out = DEFAULT_OUT,
    limit_shards: Annotated[
        int, typer.Option(help="Use only this many shards; 0: all.", min=0, rich_help_panel="Data")
    ] = 0,
    train_again: Annotated[
        bool,
        typer.Option(
            "--train-again",
            help="Train net and index on all that is there now, and make again what depends on "
            "them; the check `drift` says when.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Remove the duplicates of a data set; called again, do only what is missing or stale."""
    with loading():
        from snip_assets import graph
        from snip_assets.engine import forecast
        from snip_assets.engine.shards import load
        from snip_assets.report import terminal
        from snip_assets.report.summary import summary
        from snip_assets.resources import DataSet

    data = DataSet.of(chosen_source(features, metadata, out), out, settings)
    source_rate = forecast.source_rate(data.layout, data.source)
    with terminal.bars():
        outcome = graph.materialize(data, limit_shards, train_again=train_again)
    values = summary(data.layout)
    values["precision"] = outcome.checks.get("pair_precision")
    values["recall"] = outcome.checks.get("query_recall")
    values["orphans"] = outcome.checks.get("no_orphans")
    values["checks"] = {name: check["passed"] for name, check in outcome.checks.items()}
    failed = {n: c["description"] for n, c in outcome.checks.items() if not c["passed"]}
    values["failed_checks"] = failed
    values["seconds"] = {name: outcome.seconds[name] for name in _ORDER if name in outcome.seconds}
    values["seconds"]["checks"] = sum(s for n, s in outcome.seconds.items() if n not in _ORDER)
    values["peak_memory"] = _peaks(data)
    whole = len(outcome.new) == len(load(data.layout).shards)
    if whole and values["rows"] >= forecast.FEWEST_ROWS:
        values["forecast"] = forecast.record(
            data.layout, settings, outcome.seconds, source_rate=source_rate
        )
    if json:
        terminal.as_json(values)
    else:
        _print(values)


def _peaks(data: DataSet) -> dict[str, int]:
    """Station -> bytes of resident memory at the most, as its outputs tell."""
    from snip_assets.engine.storage.files import read_manifest
    from snip_assets.report import site_data

    peaks = {s["station"]: s["memory"] for s in site_data.stations(data.run())}
    report = read_manifest(data.layout.dedup_report)
    peaks["dedup_report"] = report.facts.get("peak_memory") if report else None
    return {name: peak for name, peak in peaks.items() if peak is not None}


def _print(values: dict[str, Any]) -> None:
    from snip_assets.report import terminal

    orphans = values["orphans"] or {}
    rows: list[tuple[str, Any]] = [
        ("rows", values["rows"]),
        ("exact copies", values["exact_copies"]),
        ("pairs", values["pairs"]),
        ("groups", values["groups"]),
        ("rows dropped", values["dropped"]),
        ("rows kept", values["kept"]),
        ("orphans", f"{orphans.get('successes', '-')} of {orphans.get('trials', '-')} looked at"),
        ("index, bytes a row", values["index_bytes_per_row"]),
        ("precision of pairs", _interval(values["precision"])),
        ("recall against exact search", _interval(values["recall"])),
    ]
    terminal.table("Duplicates", ["", ""], rows)
    peaks = {name: f"{peak / 1e9:.2f} GB" for name, peak in values["peak_memory"].items()}
    terminal.table(
        "Time, and resident memory at the most when the outputs were made",
        ["station", "seconds", "memory"],
        [(name, seconds, peaks.get(name)) for name, seconds in values["seconds"].items()],
    )
    if planned := values.get("forecast"):
        columns = ["station", "predicted, s", "measured, s"]
        terminal.table(
            f"The plan, {planned['error']:+.0%} without training",
            columns,
            [list(row.values()) for row in planned["stations"]],
        )
    terminal.table("Outputs", ["", "path"], list(values["outputs"].items()))
    for name, description in values["failed_checks"].items():
        typer.echo(f"check {name} did not pass: {description}")


def _interval(found: dict[str, Any] | None) -> str:
    if not found or not found.get("trials"):
        return "-"
    low, high = found["interval_low"], found["interval_high"]
    return f"{found['estimate']:.4f}  (95%: {low:.4f} to {high:.4f}, {found['trials']:,} sampled)"
