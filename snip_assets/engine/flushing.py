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
        """Begin with a file; it may be renamed meanwhile."""
        self._known.add(os.fstat(file.fileno()).st_ino)
        self._waiting.append(self._pool.submit(_sync, file))

    def wait(self, folder: Path) -> None:
        """Raise OSError unless all files of the folder have arrived, those not added too."""
        left = (path for path in folder.rglob("*") if path.is_file())
        left = (path for path in left if path.stat().st_ino not in self._known)
        # A disk takes some at once about as fast as one.
        with ThreadPoolExecutor(AT_ONCE, "flush") as pool:
            for _ in pool.map(lambda path: _sync(path.open("rb+")), left):
                pass
        for future in self._waiting:
            future.result()
        self._pool.shutdown()


_flushes: dict[Path, Flushes] = {}


def begin(path: Path) -> Flushes:
    """For what is written at a path, which may become a folder."""
    return _flushes.setdefault(path, Flushes())


def end(path: Path) -> None:
    """It is written, or given up."""
    del _flushes[path]


def flush(path: Path, folder: Path) -> None:
    """Bring a file to the disk: at once, or by the time that the new folder it is for is whole."""
    file, flushes = path.open("rb+"), _flushes.get(folder)
    _sync(file) if flushes is None else flushes.add(file)


def _sync(file: BinaryIO) -> None:
    with file:
        os.fsync(file.fileno())
