"""Is a file what its name says? Judged by its bytes, so that an error page never becomes data."""

from __future__ import annotations

import html
import json
import re
import zipfile
from pathlib import Path

from .errors import BadInputError
from .storage.files import open_npy
from .storage.parquet_source import parquet_rows

HEAD = 512
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def format_of(name: str) -> str | None:
    """Format by the ending of a file name, None if it is not one of ours."""
    endings = {
        ".npy": "npy",
        ".bits": "bits",
        ".parquet": "parquet",
        ".index": "faiss",
        ".faiss": "faiss",
        ".pth": "torch",
        ".pt": "torch",
        ".safetensors": "safetensors",
    }
    return endings.get(Path(name).suffix.lower())


def judge_head(head: bytes, form: str | None, name: str) -> None:
    """Raise unless the first bytes of a file are those of its format.

    Parameters
    ----------
    head
        The first bytes, `HEAD` of them or the whole of a shorter file.
    form
        npy, bits, parquet, faiss, torch, safetensors; None checks nothing.
    name
        For the message.

    Raises
    ------
    BadInputError
        They are not; the message gives the title of an HTML page.
    """
    if form is None or _fits(head, form):
        return
    if not head:
        raise BadInputError(f"{name}: empty answer where a {form} file was expected.")
    if head.lstrip()[:1] in (b"<", b"{"):
        title = _TITLE.search(head)
        says = html.unescape(title[1].decode("utf-8", "replace")).strip() if title else ""
        raise BadInputError(
            f"{name}: a web page came instead of the {form} file"
            + (f" ({says[:80]!r})" if says else "")
            + ": a quota, sign-in or error page. Nothing was kept; try later or another mirror."
        )
    raise BadInputError(f"{name}: not a {form} file (it begins with {head[:8]!r}).")


def _fits(head: bytes, form: str) -> bool:
    if form == "npy":
        return head.startswith(b"\x93NUMPY")
    if form == "bits":
        # Packed bits may begin with anything but, in practice, a page.
        return bool(head) and not head.lstrip().lower().startswith((b"<!doctype", b"<html"))
    if form == "parquet":
        return head.startswith(b"PAR1")
    if form == "torch":
        return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    if form == "safetensors":
        return len(head) > 8 and head[8:9] == b"{" and head[4:8] == bytes(4)
    if form == "faiss":
        # A four-letter name that starts with I, then the dimension as a small int32.
        return len(head) > 8 and head[:1] == b"I" and head[1:4].isalnum() and head[7:8] == b"\0"
    raise ValueError(f"unknown format {form!r}")


def judge_file(path: Path, form: str | None) -> None:
    """Raise unless a whole file is of its format and not cut short.

    Raises
    ------
    BadInputError
        Wrong first bytes; an .npy or safetensors file whose size is not what its header says;
        parquet without footer, a zip archive of weights without directory.
    """
    with open(path, "rb") as handle:
        judge_head(handle.read(HEAD), form, str(path))
    if form == "npy":
        array = open_npy(path)
        expected = array.offset + array.nbytes if hasattr(array, "offset") else None
        if expected is not None and expected != path.stat().st_size:
            raise BadInputError(
                f"{path}: {path.stat().st_size} bytes, but its header says {expected}."
            )
    elif form == "parquet":
        parquet_rows(path)
    elif form == "safetensors":
        _require_tensors(path)
    elif form == "torch" and tells_its_end(path, form) and not zipfile.is_zipfile(path):
        raise BadInputError(f"{path}: cut short: its directory, which comes last, is not there.")


def _require_tensors(path: Path) -> None:
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(min(length, path.stat().st_size))
    try:
        ends = [e["data_offsets"][1] for n, e in json.loads(header).items() if n != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInputError(f"{path}: its header is damaged or cut short ({error}).") from error
    if 8 + length + max(ends, default=0) != path.stat().st_size:
        raise BadInputError(f"{path}: {path.stat().st_size} bytes, but its header says otherwise.")


def tells_its_end(path: Path, form: str | None) -> bool:
    """Whether a file that was cut short is found out by `judge_file`."""
    if form == "torch":
        # A zip archive has its directory at the end; a bare pickle has nothing.
        with open(path, "rb") as handle:
            return handle.read(2) == b"PK"
    return form in ("npy", "parquet", "safetensors")
