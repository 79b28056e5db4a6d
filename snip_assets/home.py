"""DAGSTER_HOME in the output folder, so that nothing must be exported by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from io import StringIO
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage
from dotenv import dotenv_values

from .engine.errors import BadInputError, DiskFullError, SnipError, StaleOutputError, causes
from .engine.layout import Layout
from .engine.remote_outputs import address
from .engine.shards import Source
from .engine.storage.files import atomic_path, is_full
from .engine.storage.locks import lock
from .engine.storage.remote_files import absolute

POSTGRES = "SNIP_POSTGRES_URL"
# What SQLite says.
_READ_ONLY = "attempt to write a readonly database"
_NOT_OPENED = "unable to open database file"
_MARK = "# Written by `snip shards sync`: the data set that plain `dagster` commands work on here."


def prepare(layout: Layout) -> Path:
    """Make the folder with our `dagster.yaml` unless it is there; return it, absolute.

    With SNIP_POSTGRES_URL in the environment the storage is PostgreSQL, else SQLite.

    Raises
    ------
    StaleOutputError
        The folder was made for SQLite, and SNIP_POSTGRES_URL is set since.
    """
    home = layout.dagster_home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    file, package = home / "dagster.yaml", Path(__file__).parent
    postgres = bool(os.environ.get(POSTGRES))
    if not file.exists():
        text = (package / "dagster.yaml").read_text(encoding="utf-8")
        # Whole or absent: of one that is cut off nobody would know.
        with lock(file), atomic_path(file) as temporary:
            more = (package / "dagster_postgres.yaml").read_text(encoding="utf-8") * postgres
            temporary.write_text(text + more, encoding="utf-8")
    elif postgres and POSTGRES not in file.read_text(encoding="utf-8"):
        raise StaleOutputError(
            f"{file} keeps runs in SQLite, but {POSTGRES} is set. Delete {file} to begin anew in "
            f"PostgreSQL (outputs are not touched), or unset {POSTGRES}."
        )
    return home


@contextmanager
def instance(layout: Layout) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance: that of DAGSTER_HOME when the user has set it, else the folder's.

    Raises
    ------
    BadInputError
        DAGSTER_HOME is no folder, or nothing can be written there.
    DiskFullError
        There is no room for what Dagster records.
    """
    chosen = os.environ.get("DAGSTER_HOME") or str(prepare(layout))
    if not Path(chosen).is_dir():
        raise BadInputError(
            f"DAGSTER_HOME {chosen}: no such folder; make it, or unset the variable."
        )
    try:
        with ExitStack() as stack:
            # Two that come first would both make Dagster's tables, and one of them fail.
            writable = os.access(chosen, os.W_OK)
            with lock(Path(chosen) / "dagster.yaml") if writable else nullcontext():
                opened = stack.enter_context(dg.DagsterInstance.from_config(chosen))
                _complete(opened)
            yield opened
    except SnipError:
        raise
    except Exception as error:
        said = [str(cause) for cause in causes(error)]
        if any(_READ_ONLY in text for text in said):
            raise _not_writable(Path(chosen)) from error
        if any(_NOT_OPENED in text for text in said):
            raise BadInputError(
                f"{chosen}: SQLite cannot open files there; make it writable, or, as it takes no "
                "long paths, set DAGSTER_HOME to a folder with a shorter one."
            ) from error
        if not any(is_full(cause) for cause in causes(error)):
            raise
        raise DiskFullError(
            f"{chosen}: no space left for Dagster's records. Free space (or raise the quota) and "
            "run again; outputs are whole or absent."
        ) from error


def require_writable(home: Path) -> None:
    """Raise BadInputError if Dagster cannot write its records, where SQLite has them."""
    file = home / "dagster.yaml"
    if not home.is_dir() or (file.exists() and POSTGRES in file.read_text(encoding="utf-8")):
        return
    # Not the files beside them, which come and go.
    places = [home, home / "history", *(home / "history").glob("*.db")]
    if any(place.exists() and not os.access(place, os.W_OK) for place in places):
        raise _not_writable(home)


def _not_writable(home: Path) -> BadInputError:
    return BadInputError(
        f"{home}: Dagster's records cannot be written there; make this folder and what is in it "
        "writable."
    )


def _complete(instance: dg.DagsterInstance) -> None:
    """Make the tables that a first start left out which was killed, or had no room for them."""
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage) and not storage.has_table("dynamic_partitions"):
        # Dagster makes them when it connects, but asks for this one before it does.
        with storage.index_connection():
            pass


def environment(layout: Layout, source: Source | None = None) -> dict[str, str]:
    """Variables that make `dagster` work on this output folder."""
    values = {
        "DAGSTER_HOME": os.environ.get("DAGSTER_HOME") or str(prepare(layout)),
        "SNIP_OUT": address(layout.root.resolve()),
    }
    if source is not None:
        values["SNIP_FEATURES"] = str(absolute(source.features))
        values["SNIP_METADATA"] = str(absolute(source.metadata))
    return values


def remember(layout: Layout, source: Source, folder: Path = Path()) -> bool:
    """Note the data set in `.env`, which `dagster` reads in the folder where it is started.

    Only in a folder whose `workspace.yaml` names our definitions. Each line gives way to a
    variable that the user has exported; a `.env` that is not ours is left alone.

    Returns
    -------
    Whether the file now says so.
    """
    workspace, file = folder / "workspace.yaml", folder / ".env"
    if not workspace.exists() or "snip_assets.definitions" not in workspace.read_text(
        encoding="utf-8"
    ):
        return False
    if file.exists() and not file.read_text(encoding="utf-8").startswith(_MARK):
        return False
    values = environment(layout, source)
    lines = [f'{k}="${{{k}:-{v}}}"' for k, v in values.items()]
    text = "\n".join([_MARK, *lines]) + "\n"
    read = dotenv_values(stream=StringIO(text))
    if any(read.get(k) != v for k, v in values.items() if k not in os.environ):
        # A quote or a dollar sign in a path: such a file cannot say it.
        return False
    file.write_text(text, encoding="utf-8")
    return True
