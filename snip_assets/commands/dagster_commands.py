"""`snip ui` and `snip dagster`: Dagster's own commands on an output folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from snip_assets.options import DEFAULT_OUT, Out, named

_MODULE = ["-m", "snip_assets.definitions"]
_RUNS = (["asset", "materialize"], ["job", "execute"])
PANEL = "Dagster"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ui", rich_help_panel=PANEL)(ui)
    passed = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("dagster", rich_help_panel=PANEL, context_settings=passed)(dagster)


def ui(
    out: Out = DEFAULT_OUT,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65_535)] = 3000,
) -> None:
    """Open Dagster's UI on an output folder (webserver and daemon)."""
    _require_free(host, port)
    raise typer.Exit(_dagster(["dev", *_MODULE, "-h", host, "-p", str(port)], out))


def dagster(context: typer.Context, out: Out = DEFAULT_OUT) -> None:
    """Run a `dagster` command on an output folder, DAGSTER_HOME set: `snip dagster asset list`."""
    raise typer.Exit(_dagster(context.args, out))


def _require_free(host: str, port: int) -> None:
    """Dagster goes on without a page where another one has the port: perhaps of other data."""
    from snip_assets.engine.errors import BadInputError

    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except OSError as error:
        why = str(error.strerror or error).split(" (while")[0]
        raise BadInputError(
            f"{host}:{port} cannot be listened on ({why}); choose another --port, or --host."
        ) from error


def _dagster(arguments: list[str], out: Path) -> int:
    from snip_assets import home
    from snip_assets.dead_runs import VARIABLE, bury
    from snip_assets.engine.layout import Layout
    from snip_assets.engine.shards import load
    from snip_assets.partitions import announce

    layout = Layout(out)
    source = load(layout).source if layout.registry.exists() else None
    if source is None:
        typer.echo(
            f"{named(out)}: no shards registered here yet; see `snip shards sync`.", err=True
        )
    variables = {**os.environ, **home.environment(layout, source)}
    if arguments[:1] == ["dev"] or arguments[:2] in _RUNS:
        home.require_writable(Path(variables["DAGSTER_HOME"]))
        if source:
            _warn_of_settings(variables)
    if source and arguments[:1] in (["dev"], ["job"], ["asset"]):
        with home.instance(layout) as instance:
            # Its records may be those of a machine that has just opened the url.
            announce(instance, layout)
            if arguments[:2] in _RUNS:
                variables[VARIABLE] = "1"
                bury(instance)
    # Most of Dagster's commands do not look into pyproject.toml for the module.
    if _takes_module(arguments) and not {"-m", "-w", "-f", "-d"} & set(arguments):
        arguments = [*arguments, *_MODULE]
    return _run([sys.executable, "-m", "dagster", *arguments], variables)


def _takes_module(arguments: list[str]) -> bool:
    """Whether a command of Dagster is told by `-m` what is defined: `asset wipe` is not."""
    from click import Group
    from dagster._cli import create_dagster_cli

    command = create_dagster_cli()
    for word in arguments:
        if not isinstance(command, Group):
            break
        if word not in command.commands:
            return False
        command = command.commands[word]
    return any("-m" in option.opts for option in command.params)


def _warn_of_settings(variables: dict[str, str]) -> None:
    """Tell which outputs runs with these variables would make again, as settings differ."""
    from snip_assets.report.site_data import made_otherwise
    from snip_assets.resources import DataSet

    data = DataSet.from_environment(variables)
    if found := made_otherwise(data.run()):
        typer.echo(
            f"warning: {', '.join(found)} in {data.out} had other settings than runs will "
            f"have here (max_distance {data.max_distance:g}, codec {data.codec}, ...), and would "
            "be made again. Export those that they were made with, such as SNIP_MAX_DISTANCE, or "
            "unset variables that say otherwise.",
            err=True,
        )


def _run(command: list[str], variables: dict[str, str]) -> int:
    """Run a command that ends when this one is told to: Dagster's services end by SIGINT alone."""
    # In the background of a script it is ignored, and would be by the command too.
    former = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, env=variables)

    def end(number: int, _: object) -> None:
        # A terminal sends Ctrl-C to all processes of its group itself.
        if number != signal.SIGINT or not _in_foreground():
            process.send_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, end)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` has it ignored, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            former[number] = signal.signal(number, end)
    try:
        return process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
