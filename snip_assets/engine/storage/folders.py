"""Folders that are replaced as a whole: no system call of Python's exchanges two at once.

The former one is set aside first. Should the process die before the new one is in its place,
whoever locks the output next puts the former one back.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path


def temporary_of(path: Path) -> Path:
    """Where something is written before it gets its place; `locks.lock` removes it after a kill."""
    return path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:12]}"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_folder(new: Path, place: Path) -> None:
    """Move a folder to a place; if that fails, what was there stays."""
    aside = _aside(place)
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.replace(aside)
    try:
        new.replace(place)
    except OSError:
        put_back(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def put_back(place: Path) -> None:
    """Undo a replacement that was not finished; remove what one left that was."""
    aside = _aside(place)
    if aside.exists() and not place.exists():
        aside.replace(place)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.parent / f".former-{place.name}"
