"""What is written goes neither over the sources nor into the outputs of a run.

A copy that would overwrite the very file that it is made of is refused by `parquet_filter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadInputError
from .layout import STATIONS, local
from .storage import working_copies
from .storage.remote_files import is_remote

if TYPE_CHECKING:
    from .shards import Source


def from_sources(root: Path, source: Source) -> None:
    """Raise BadInputError if outputs below a folder or url would lie among the sources."""
    own = place(root)
    for given in (source.features, source.metadata):
        there = place(given)
        inside = there.removeprefix(own).partition("/")[0] if there.startswith(own) else None
        if inside == "" or inside in STATIONS:
            raise BadInputError(
                f"{given}: outputs in {working_copies.named(root)} would be written among these "
                "sources; choose another output folder."
            )


def place(folder: Path) -> str:
    """One text for all names of a folder or url, with a slash at its end."""
    copy = working_copies.of(folder)
    if copy is not None and folder == copy.root:
        folder = copy.url
    return (str(folder) if is_remote(folder) else str(folder.resolve())).rstrip("/") + "/"


def from_outputs(folder: Path) -> None:
    """Raise BadInputError if a folder is one of the outputs of a run, or lies in one, or a url."""
    whole = local(folder).resolve()
    for part in (whole, *whole.parents):
        marks = (part.parent / "shards.json", part.parent / "duplicate_groups")
        if part.name in STATIONS and any(mark.exists() for mark in marks):
            raise BadInputError(f"{folder}: holds outputs of a run; choose another folder.")
