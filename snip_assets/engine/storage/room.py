"""Room in a working copy: files that lie at its url are given up."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from .parts import Parts
from .sent import Notes, state

# Seconds for which a file that was made, came or was read just now stays.
RECENT = 60.0


def trim(root: Path, notes: Notes, parts: Parts, most: int) -> int:
    """Give up files, those that were made, came or were read first, above a number of bytes.

    Returns
    -------
    Bytes of the files that could be given up and are left.
    """
    found: list[tuple[float, int, Path]] = []
    for name, sent in notes.all().items():
        path = root / name
        if parts.comes_at_once(name) or sent.here != state(path):
            continue
        for member in sent.files:
            with suppress(FileNotFoundError):
                status = (path.parent / member).stat()
                # One that is newer than its manifest is being made again.
                if status.st_mtime_ns <= sent.here[1]:
                    used = max(status.st_atime, status.st_mtime)
                    found.append((used, status.st_size, path.parent / member))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total <= most or time.time() - used < RECENT:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total
