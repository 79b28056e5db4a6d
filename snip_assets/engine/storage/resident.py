"""Memory-mapped pages counted in resident memory, and let go of before they become too many.

Pages of a memory map stay with the process once they were touched. They cost nothing (the system
takes them back when it needs room), but a process that has read 25 GB of an index looks as if it
held 25 GB, and a limit on the memory of a container may end it. So who reads maps calls `trim`
now and then: once `LIMIT` bytes of file pages have come in, they are handed back, the widest rows
first, for a page of these holds few rows and is seldom read twice.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

LIMIT = 1 << 30
EVERY = 0.002
# Open files asked of the system, each memory map counted.
MOST_FILES = 65_536
_STATM = Path("/proc/self/statm")
_PAGE = mmap.PAGESIZE
_maps: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
# File pages that were there before the first map: the libraries.
_floor: int | None = None
_looked = 0.0


def file_bytes() -> int:
    """Bytes of file pages in resident memory; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[2]) * _PAGE
    except OSError:
        return 0


def watch(array: np.ndarray) -> None:
    """Let `trim` hand back the pages of a read-only memory map."""
    global _floor
    owner = getattr(array, "_mmap", None)
    if not isinstance(owner, mmap.mmap) or not hasattr(owner, "madvise"):
        return
    with _lock:
        if _floor is None:
            allow_open_files()
            _floor = file_bytes()
        _maps[owner] = array.strides[0] if array.ndim else 0


def trim() -> None:
    """Hand back file pages when more than `LIMIT` bytes of them came in; cheap to call often."""
    global _looked
    now = time.monotonic()
    if now - _looked < EVERY or not _lock.acquire(blocking=False):
        return
    try:
        _looked = now
        if file_bytes() > (_floor or 0) + LIMIT:
            _release()
    finally:
        _lock.release()


def _release() -> None:
    """Until half of the limit is free again."""
    enough = (_floor or 0) + LIMIT // 2
    width = None
    for owner, own in sorted(_maps.items(), key=lambda item: -item[1]):
        if own != width and width is not None and file_bytes() <= enough:
            return
        width = own
        if not owner.closed:
            owner.madvise(mmap.MADV_DONTNEED)


def allow_open_files() -> int:
    """Raise this process's limit of open files, and return it: each memory map counts as one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_FILES
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    while soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        # macOS calls its limit infinite, and refuses more than its kernel allows a process.
        wanted //= 2
    return soft


if hasattr(os, "register_at_fork"):  # A child must not inherit a lock that another thread holds.

    def _new_lock() -> None:
        global _lock
        _lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock)
