"""Files that are sent by themselves: those in a working copy, and those at its url."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from . import transfers
from .files import MANIFEST
from .parts import Parts
from .sent import state


def there(url: Any, parts: Parts, pool: Executor) -> dict[str, str]:
    """Path below the url -> state of each file, listed anew."""
    listed = transfers.listed(url, deep=False)
    folders = sorted(parts.sealed | parts.plain)
    found = pool.map(lambda name: transfers.listed(url / name, deep=True), folders)
    for folder, part in zip(folders, found, strict=True):
        listed |= {f"{folder}/{name}": state for name, state in part.items()}
    return {name: state for name, state in listed.items() if parts.holds(name)}


def here(root: Path, parts: Parts) -> dict[str, tuple[int, int]]:
    """Path below the root -> size and time of each file."""
    names = [*parts.files, *(f"{name}{MANIFEST}" for name in parts.sealed)]
    for top in (*parts.plain, *parts.sealed):
        for folder, folders, files in os.walk(root / top):
            folders[:] = [name for name in folders if name[0] != "."]
            below = Path(folder).relative_to(root).as_posix()
            names += [f"{below}/{file}" for file in files if file[0] != "."]
    states = {name: state(root / name) for name in names if parts.holds(name)}
    return {name: found for name, found in states.items() if found is not None}
