"""`snip plan`: what a run would take, before it is begun."""

from __future__ import annotations

import math
import re
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from snip_assets.engine.settings import Settings
from snip_assets.options import DEFAULT_OUT, Json, Out, with_settings

if TYPE_CHECKING:
    from snip_assets.engine.plan import Plan

_DATA, _MACHINE = "Data", "Machine"
# Beyond, numbers of a plan overflow.
MOST_ROWS = 1 << 40
_GIB = {"M": 2**-10, "G": 1.0, "T": 2**10}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", rich_help_panel="The whole graph")(with_settings(plan, noted=False))


def _gib(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*)\s*(?:([MGT])i?B?)?", str(text).strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r}; give GiB, as 32 or 32GB.")
    return float(found[1]) * _GIB[(found[2] or "G").upper()]


def _number(value: float) -> float:
    # Of no bound can it be said on which side NaN lies.
    if not math.isfinite(value):
        raise typer.BadParameter("give a finite number.")
    return value


def plan(
    settings: Settings,
    features: Annotated[
        str | None,
        typer.Argument(
            metavar="[FEATURES]", help="Folder or url of img_emb_{key}.npy; or give --rows."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(help="Rows.", min=0, max=MOST_ROWS, rich_help_panel=_DATA)
    ] = 0,
    raw_dim: Annotated[
        int,
        typer.Option(help="Numbers of a raw feature.", min=1, max=1 << 20, rich_help_panel=_DATA),
    ] = 768,
    shards: Annotated[
        int,
        typer.Option(help="0: of a million rows each.", min=0, max=1 << 24, rich_help_panel=_DATA),
    ] = 0,
    memory: Annotated[
        float,
        typer.Option(
            parser=_gib,
            metavar="<GiB>",
            help="Of the machine, also as 32GB; 0: that of this one.",
            rich_help_panel=_MACHINE,
        ),
    ] = 0.0,
    cores: Annotated[int, typer.Option(help="0: those here.", min=0, rich_help_panel=_MACHINE)] = 0,
    disk_gb_per_s: Annotated[
        float,
        typer.Option(
            "--disk-gb-per-s",
            "--disk",
            help="0: as measured here.",
            min=0,
            callback=_number,
            rich_help_panel=_MACHINE,
        ),
    ] = 0.0,
    gpu_tflops: Annotated[
        float,
        typer.Option(
            help="What a GPU does in the net's products; 0: as measured, where there is one. What "
            "is given holds for training and compression, not for the join.",
            min=0,
            callback=_number,
            rich_help_panel=_MACHINE,
        ),
    ] = 0.0,
    out: Out = DEFAULT_OUT,
    json: Json = False,
) -> None:
    """Predict time, memory and disk of a run, from rates measured on this machine."""
    from snip_assets.engine import choices, rates
    from snip_assets.engine import plan as engine
    from snip_assets.engine.storage.remote_files import as_path
    from snip_assets.report import terminal

    itemsize, source_rate = 2, 0.0
    if features is not None:
        folder = as_path(features)
        rows, raw_dim, itemsize, shards = engine.headers(folder)
        # Another disk than this one is planned for where one is given.
        source_rate = 0.0 if disk_gb_per_s else rates.reading(engine.feature_files(folder))
    if rows <= 0:
        raise typer.BadParameter("give a folder of features, or --rows.")
    measured = rates.measure(out, raw_dim, choices.settled(rows, settings))
    planned = engine.predict(
        rows,
        raw_dim,
        measured,
        settings,
        itemsize=itemsize,
        shards=shards,
        cores=cores,
        memory_gb=memory,
        disk_gb_per_s=disk_gb_per_s,
        gpu_tflops=gpu_tflops,
        source_rate=source_rate,
        free=shutil.disk_usage(rates.existing(out)).free,
    )
    if json:
        terminal.as_json({**planned.to_json(), "rates": measured.__dict__})
    else:
        _print(planned, settings.dim)


def _print(planned: Plan, short_dim: int) -> None:
    from snip_assets.report import terminal

    title = f"{planned.rows:,} rows x {planned.dim}, compressed to {short_dim}, "
    title += f"on {planned.cores} cores"
    if planned.gpu_tflops:
        title += f" and a GPU of {planned.gpu_tflops:g} TFLOP/s"
    columns = ["station", "minutes", "memory, GiB", "disk read, GB", "written, GB"]
    terminal.table(
        title,
        columns,
        [[s.name, s.seconds / 60, s.memory_gib, s.read_gb, s.write_gb] for s in planned.stations],
    )
    facts = [
        ("hours in all", planned.seconds / 3600),
        ("hours of --train-again, later", planned.retraining_seconds / 3600),
        ("memory at the most, GiB (1 of them file pages)", planned.peak_gib),
        ("disk for outputs, GB", planned.disk_gb),
        ("free there, GB", planned.free_gb),
        ("inverted lists", planned.lists),
        ("codec", planned.codec),
        ("lists probed a row (assumed)", planned.probes),
        ("shards joined at once", planned.shards_a_run),
        ("to be run with --memory-gb", planned.run_memory_gb),
    ]
    terminal.table("In all", ["", ""], facts)
    for problem in planned.problems:
        typer.echo(f"- {problem}")
