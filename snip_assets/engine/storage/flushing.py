"""Files of a new folder reach the disk while the next ones are made."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

AT_ONCE = 8


class Flushes:
    """Files of a folder that are on their way to the disk."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "flush")
        self._waiting: list[Future[None]] = []
        self._known: set[int] = set()

    def add(self, file: BinaryIO) -> None:
        """Bring an open file to the disk in the background, and close it; it may be renamed."""
        self._known.add(os.fstat(file.fileno()).st_ino)
        self._waiting.append(self._pool.submit(_sync, file))

    def wait(self, folder: Path) -> None:
        """Wait until all files of the folder are on the disk, those that were not added too.

        Raises
        ------
        OSError
            One could not be written.
        """
        left = (path for path in folder.rglob("*") if path.is_file())
        left = (path for path in left if path.stat().st_ino not in self._known)
        # A disk syncs some files at once in about the time of one.
        with ThreadPoolExecutor(AT_ONCE, "flush") as pool:
            for _ in pool.map(lambda path: _sync(path.open("rb+")), left):
                pass
        for future in self._waiting:
            future.result()
        self._pool.shutdown()


_flushes: dict[Path, Flushes] = {}


def begin(path: Path) -> Flushes:
    """Collect the flushes of what is written at a path, until `end`."""
    return _flushes.setdefault(path, Flushes())


def end(path: Path) -> None:
    """What was written at a path is in its place, or given up."""
    del _flushes[path]


def flush(path: Path, folder: Path) -> None:
    """Bring a file to the disk: at once, or in the background if `folder` is being written."""
    file, flushes = path.open("rb+"), _flushes.get(folder)
    _sync(file) if flushes is None else flushes.add(file)


def _sync(file: BinaryIO) -> None:
    with file:
        os.fsync(file.fileno())
