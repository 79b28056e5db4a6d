"""Where a file may be: addresses, Hugging Face, Google Drive, folders."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from snip_assets.engine.errors import BadInputError

from .remote import hugging_face, redacted

_DRIVE_ID = re.compile(r"[A-Za-z0-9_-]{25,60}")
_DRIVE_PATH = re.compile(r"/(?:file/(?:u/\d+/)?)?d/([A-Za-z0-9_-]{20,})")


def drive_id(location: str) -> str | None:
    """The Google Drive id that a location names, None if it names none."""
    if location.startswith("gdrive:"):
        return location.removeprefix("gdrive:").strip("/")
    parts = _split(location)
    if parts.hostname in ("drive.google.com", "docs.google.com", "drive.usercontent.google.com"):
        found = _DRIVE_PATH.match(parts.path)
        return found[1] if found else parse_qs(parts.query).get("id", [None])[0]
    if not parts.scheme and _DRIVE_ID.fullmatch(location) and not Path(location).exists():
        return location
    return None


def local_path(location: str) -> Path | None:
    """The local path that a location names, None if it is remote."""
    if location.startswith("file://"):
        parts = _split(location)
        if parts.netloc not in ("", "localhost"):
            raise BadInputError(
                f"{location}: names the machine {parts.netloc}; write file:///path."
            )
        return Path(unquote(parts.path))
    if "://" in location or location.startswith("hf:") or drive_id(location):
        return None
    try:
        return Path(location).expanduser()
    except RuntimeError as error:
        raise BadInputError(f"{location}: no such home folder; write the whole path.") from error


def web_address(location: str) -> str:
    """The http(s) address of a location.

    Raises
    ------
    BadInputError
        It has none.
    """
    if location.startswith("hf:"):
        pieces = location.removeprefix("hf:").strip("/").split("/")
        owner = 3 if pieces[0] in ("datasets", "spaces") else 2
        if len(pieces) <= owner:
            raise BadInputError(f"{location}: expected hf:datasets/OWNER/NAME/path/of/file.")
        repository, path = "/".join(pieces[:owner]), "/".join(pieces[owner:])
        return f"{hugging_face()}/{repository}/resolve/main/{path}"
    if _split(location).scheme in ("http", "https"):
        return location
    raise BadInputError(
        f"{location}: expected a path, http(s)://, hf:, gdrive:, file:// or the url of an object "
        "store (s3://, gs://)."
    )


def shown(location: str) -> str:
    """A location fit to be shown: no password, no query."""
    return redacted(location) if "://" in location else location


def _split(location: str) -> SplitResult:
    try:
        return urlsplit(location)
    except ValueError as error:
        raise BadInputError(f"{location}: no address ({error}); check it.") from error
