"""One process at a time makes an output."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snip_assets.engine.errors import BadInputError, DiskFullError

from .folders import put_back, remove, temporary_of

_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
    *(errno.ENAMETOOLONG, errno.EISDIR),
}


@contextmanager
def lock(output: Path, *beside: Path) -> Iterator[None]:
    """Let one process (or thread) at a time make an output; the others wait.

    Temporaries that a killed process left of this output are removed. The lock goes with the
    process that holds it, so a killed one leaves an unlocked file at the most.

    Parameters
    ----------
    beside
        Files that are made with it, under its lock.

    Raises
    ------
    BadInputError
        The folder cannot be made, or nothing can be written there.
    """
    held = output.parent / f".{output.name}.lock"
    while True:
        handle = _opened(held)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # The one before us may have removed the file that we opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), held.stat()):
                break
        os.close(handle)
    try:
        put_back(output)
        for path in (output, *beside):
            _remove_temporaries(path)
        yield
    finally:
        held.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def unless_locked(output: Path) -> Iterator[bool]:
    """Whether nobody makes an output; then nobody else does until this is left."""
    held = output.parent / f".{output.name}.lock"
    handle = _opened(held)
    free = False
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had it may have removed the file that we opened, and another made one since.
        free = os.path.samestat(os.fstat(handle), held.stat())
    try:
        yield free
    finally:
        if free:
            held.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A folder for what is needed while `output` is made."""
    folder = temporary_of(output)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


def _opened(held: Path) -> int:
    try:
        held.parent.mkdir(parents=True, exist_ok=True)
        return os.open(held, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{held.parent}: no space left; free some and run again."
            ) from error
        if error.errno not in _REFUSED:
            # Faults that may pass: `assets.station` has Dagster try again.
            raise
        raise BadInputError(
            f"{held.parent}: cannot be made or written ({error.strerror}); make it writable, or "
            "choose another output folder."
        ) from error


def _remove_temporaries(output: Path) -> None:
    name = re.compile(
        rf"\.tmp-{re.escape(output.name)}(\.manifest\.json|\.checkpoint)?-[0-9a-f]{{12}}"
    )
    with os.scandir(output.parent) as entries:
        left = [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]
    for path in left:
        remove(path)
