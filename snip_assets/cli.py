"""`snip`: thin commands over the engine and the asset graph. Each lives in `commands/`."""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import pkgutil
import sys
import warnings
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from . import __version__, commands, garbage
from .engine.errors import BadInputError, SnipError, without_secrets

# What the system says of a place that cannot be what a command wants of it.
_PLACES = (
    *(FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError),
    PermissionError,
)
_STOPPED = 130
_GOES_ON = "stopped; the same command again goes on from here"
_EPILOG = """
[bold]Examples[/bold]

snip dedup --out out/demo (the built-in sample)

snip dedup --features DIR --metadata DIR --out OUT && snip report --out OUT --open

snip show 982 --out OUT

[bold]Exit codes[/bold]

0 done; 1 a fault of ours (see --debug); 2 wrong usage or input; 3 an output is missing, stale or\
 fails its check; 4 the disk is full, or a server fails; 5 the machines of --compute fail;\
 130 stopped by Ctrl-C. The message says what to do.

NO_COLOR, or --no-color before the command, turns colours off; --json prints for scripts; progress\
 goes to stderr.
"""

app = typer.Typer(
    name="snip",
    help="Find and remove the duplicates of image-text data sets, from their CLIP features.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
    rich_markup_mode="rich",
)
_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _plain(wanted: bool) -> None:
    if wanted:
        # Everything that draws in the terminal looks here when it starts.
        os.environ["NO_COLOR"] = "1"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the stack trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", callback=_plain, is_eager=True, help="No colours.")
    ] = False,
) -> None:
    """Options of all commands."""
    global _debug
    _debug = debug


with garbage.loading():
    for _module in sorted(m.name for m in pkgutil.iter_modules(commands.__path__)):
        importlib.import_module(f"{commands.__name__}.{_module}").register(app)


def _say(error: object, exit_code: int) -> NoReturn:
    text = str(error)
    # Loaded by who read something from a url.
    if (inputs := sys.modules.get("snip_assets.engine.remote_inputs")) is not None:
        text = inputs.told(text)
    Console(stderr=True, soft_wrap=True).print("[red]error:[/red]", end=" ")
    print(text, file=sys.stderr)
    sys.exit(exit_code)


def _send_outputs() -> None:
    """Bring what a command made to the url of its output folder, where it has one."""
    # Loaded by who opened such a folder.
    if (outputs := sys.modules.get("snip_assets.engine.remote_outputs")) is not None:
        outputs.send()


def _stop() -> NoReturn:
    """End at once: who stops a command does not wait until the store has all that was made."""
    if (outputs := sys.modules.get("snip_assets.engine.remote_outputs")) is not None:
        outputs.abandon()
    print(_GOES_ON, file=sys.stderr)
    sys.exit(_STOPPED)


def _run() -> None:
    try:
        app()
    except SnipError:
        # What failed is told, not that this could not be sent either.
        with suppress(SnipError):
            _send_outputs()
        raise
    except SystemExit as stop:
        if stop.code != _STOPPED:
            _send_outputs()
        raise


def main() -> None:
    """Run a command; an error that the user can mend is one line and an exit code."""
    warnings.filterwarnings("ignore", message=".*is currently in (beta|preview).*")
    atexit.register(garbage.freeze)
    try:
        _run()
    except SnipError as error:
        if _debug:
            raise
        _say(error, error.exit_code)
    except OSError as error:
        fitting = isinstance(error, _PLACES) or error.errno == errno.ENAMETOOLONG
        if _debug or error.filename is None or not fitting:
            raise
        # Of a renaming, the place that it was for.
        place = error.filename2 or error.filename
        reason = f"{place}: {error.strerror}; give another place, or make this one usable."
        _say(without_secrets(reason), BadInputError.exit_code)
    except SystemExit as stop:
        # Ctrl-C: typer exits with this code, and without a word.
        if stop.code == _STOPPED:
            _stop()
        raise
    except KeyboardInterrupt:
        _stop()


if __name__ == "__main__":
    main()
