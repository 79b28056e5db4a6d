"""The working copies that this process has open, as those see them who read and write files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from snip_assets.engine.errors import without_secrets

if TYPE_CHECKING:
    from .working_copy import WorkingCopy

Read = TypeVar("Read")
_open: dict[Path, WorkingCopy] = {}


def add(copy: WorkingCopy) -> None:
    """Have what is written below a working copy sent, and what is missing there fetched."""
    _open[copy.root] = copy


def every() -> list[WorkingCopy]:
    """All that are open."""
    return [*_open.values()]


def of(path: Path) -> WorkingCopy | None:
    """The working copy in which a path lies."""
    if not _open:
        return None
    return next((copy for root, copy in _open.items() if path.is_relative_to(root)), None)


def named(path: Path) -> str:
    """What a user calls a path: below the url in a working copy, else itself."""
    copy = of(path)
    return str(path) if copy is None else joined(copy.url, path.relative_to(copy.root))


def joined(url: Any, below: Path) -> str:
    """A url and what lies below it, fit to be shown."""
    return without_secrets(str(url / below.as_posix() if below.parts else url))


def written(path: Path) -> None:
    """A file, or a folder, is in its place."""
    if (copy := of(path)) is not None:
        copy.written(path)


def discard(path: Path) -> None:
    """Remove a file on purpose: at the url of a working copy too."""
    if (copy := of(path)) is not None:
        copy.discard(path)
    else:
        path.unlink(missing_ok=True)


def here_or_fetched(output: Path, files: dict[str, Any], *, fetch: bool) -> dict[str, Any]:
    """The files of an output without those that lie at the url alone, unless these come."""
    copy = of(output)
    missing = [n for n in files if not (output.parent / n).exists()] if copy is not None else []
    if copy is None or not missing or not copy.holds(output):
        return files
    if fetch:
        copy.fetch(output, missing)
        return files
    return {name: entry for name, entry in files.items() if name not in missing}


def here(path: Path) -> Path:
    """A path whose file is fetched if it lies at the url alone."""
    if (copy := of(path)) is not None and not path.exists():
        copy.fetch_file(path)
    return path


def opened(path: Path, read: Callable[[Path], Read]) -> Read:
    """What reads a file, which is fetched if it lies at the url alone.

    Room may be made between the look for it and the reading: then it is fetched once more.
    """
    here(path)
    try:
        return read(path)
    except FileNotFoundError:
        if of(path) is None:
            raise
    return read(here(path))
