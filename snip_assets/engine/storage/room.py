"""Room in a working copy: files that lie at its url are given up."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from .locks import unless_locked
from .parts import Parts
from .sent import Notes, output_of, state

# Seconds for which a file that was made, came or was read just now stays.
RECENT = 60.0


def trim(root: Path, notes: Notes, parts: Parts, most: int) -> int:
    """Give up files, those that were made, came or were read first, above a number of bytes.

    Returns
    -------
    Bytes of the files that could be given up and are left.
    """
    found: dict[Path, tuple[float, int, Path, Path, tuple[int, int]]] = {}
    # What a part names too is the part's: under the part's lock it is made.
    for name, sent in sorted(notes.all().items(), key=lambda item: item[0].count("/")):
        manifest = root / name
        if parts.comes_at_once(name) or sent.here != state(manifest):
            continue
        for path in (manifest.parent / member for member in sent.files):
            if (use := _use(path, sent.here)) is not None:
                found[path] = (*use, path, manifest, sent.here)
    total = sum(size for _, size, *_ in found.values())
    for used, size, path, manifest, sealed in sorted(found.values()):
        if total <= most or time.time() - used < RECENT:
            break
        with unless_locked(output_of(manifest)) as free:
            # Since the look above it may have been made again, or read.
            if free and state(manifest) == sealed and _use(path, sealed) == (used, size):
                path.unlink(missing_ok=True)
                total -= size
    return total


def _use(path: Path, sealed: tuple[int, int]) -> tuple[float, int] | None:
    """When a file was used last, and its size; None where it is absent, or being made again."""
    with suppress(FileNotFoundError):
        status = path.stat()
        if status.st_mtime_ns <= sealed[1]:
            return max(status.st_atime, status.st_mtime), status.st_size
    return None
