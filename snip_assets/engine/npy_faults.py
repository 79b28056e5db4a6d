"""Why a file is no array, told by its first bytes."""

from __future__ import annotations

from pathlib import Path


def npy_reason(path: Path, error: Exception) -> str:
    """Words, with the cure, for what numpy said of a file."""
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
