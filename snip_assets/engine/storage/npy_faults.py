"""Why a file is no array, told by its first bytes; and the one fault that is not the file's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Read = TypeVar("Read")
TRIES = 20


def undisturbed(read: Callable[[], Read]) -> Read:
    """What reads a header, once more where another thread disturbed it.

    NumPy has Python parse it, and Python 3.11 counts the depth of what it parses for all threads
    together: it raises SystemError where a finalizer lets another one in.
    """
    for _ in range(TRIES - 1):
        try:
            return read()
        except SystemError:
            continue
    return read()


def npy_reason(path: Path, error: Exception) -> str:
    """Words, with the cure, for what numpy said of a file."""
    if isinstance(error, FileNotFoundError):
        return "no such file."
    if isinstance(error, PermissionError):
        return "permission denied; make it readable."
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return "too many open files; raise `ulimit -n`."
    try:
        with open(path, "rb") as handle:
            head = handle.read(512)
    except OSError:
        return f"cannot be read ({error})."
    if not head:
        return "the file is empty; fetch it again."
    if head.lstrip()[:1] == b"<":
        return "this is an HTML or XML page, not data (an error page saved by a download?)."
    if not head.startswith(b"\x93NUMPY"):
        return "not an .npy file (wrong magic bytes); fetch or write it again."
    if "bjects" in str(error) or b"'O'" in head:
        return "it holds pickled Python objects, which are never loaded; save it as numbers."
    return f"damaged or truncated ({error}); fetch or write it again."
