"""What a working copy knows of the files that it sent to its url, or that came from there."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snip_assets.engine.errors import BadInputError, DiskFullError

from .files import MANIFEST

SECONDS_TO_WAIT = 300
_DISCARDED = (-1, -1)
_TABLE = (
    "create table if not exists sent"
    " (path text primary key, size int, mtime int, remote text, files text)"
)


@dataclass(frozen=True)
class Sent:
    """A file as it was when it was sent or came.

    Attributes
    ----------
    here
        Its size and time, see `state`.
    remote
        Its state at the url.
    files
        What it names if it is a manifest.
    """

    here: tuple[int, int]
    remote: str
    files: dict[str, Any]

    @property
    def discarded(self) -> bool:
        """Whether it was removed here on purpose, and is still to be removed there."""
        return self.here == _DISCARDED


class Notes:
    """Path below the root -> `Sent`; for all threads and processes that use a working copy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, name: str) -> Sent | None:
        """What is noted of one file."""
        return self._found("where path = ?", name).get(name)

    def below(self, start: str) -> dict[str, Sent]:
        """What is noted of those whose path begins alike."""
        return self._found("where substr(path, 1, ?) = ?", len(start), start)

    def all(self) -> dict[str, Sent]:
        """What is noted of every file."""
        return self._found("")

    def note(self, name: str, remote: str, was: tuple[int, int] | None = None) -> None:
        """Note a file as it is now, or was when it was sent, with its state at the url."""
        path = self.root / name
        if (now := was or state(path)) is not None:
            row = (name, *now, remote, json.dumps(files_of(path)))
            with self._open() as notes:
                notes.execute("insert or replace into sent values (?, ?, ?, ?, ?)", row)

    def discard(self, name: str) -> None:
        """Note that a file is to be removed at the url."""
        with self._open() as notes:
            notes.execute("update sent set size = -1, mtime = -1 where path = ?", (name,))

    def forget(self, name: str) -> None:
        """Have nothing noted of a file."""
        with self._open() as notes:
            notes.execute("delete from sent where path = ?", (name,))

    def _found(self, chosen: str, *values: Any) -> dict[str, Sent]:
        with self._open() as notes:
            rows = notes.execute(f"select * from sent {chosen}", values).fetchall()
        return {p: Sent((size, at), remote, json.loads(fs)) for p, size, at, remote, fs in rows}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        place = self.root / ".working_copy.db"
        try:
            with closing(sqlite3.connect(place, timeout=SECONDS_TO_WAIT)) as notes:
                notes.execute(_TABLE)
                yield notes
                notes.commit()
        except sqlite3.Error as error:
            if "full" in str(error) or "I/O" in str(error):
                raise DiskFullError(
                    f"{place}: no space left ({error}). Free some, or have working copies "
                    "elsewhere (SNIP_WORK)."
                ) from error
            raise BadInputError(
                f"{place}: cannot be read or written ({error}). Remove it: what lies here is "
                "compared with the url again."
            ) from error


def state(path: Path) -> tuple[int, int] | None:
    """Size and time (ns) of a file; None where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return None


def output_of(manifest: Path) -> Path:
    """The output that a manifest is of; a file without one is its own."""
    return manifest.with_name(manifest.name.removesuffix(MANIFEST))


def files_of(path: Path, *, manifest: bool | None = None) -> dict[str, Any]:
    """Files that a manifest names; none where it is none (by its name), absent or damaged."""
    if not (path.name.endswith(MANIFEST) if manifest is None else manifest):
        return {}
    try:
        return dict(json.loads(path.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
