"""What of a working copy was not sent: told, unless it need not be."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from snip_assets.engine.errors import BadInputError

from . import transfers
from .files import checksum
from .locks import unless_locked
from .remote import DownloadError
from .remote_files import exists, reading
from .sent import Notes, Sent, files_of, output_of, state


def require_sent(
    root: Path, url: Any, notes: Notes, changed: Mapping[str, tuple[int, int]]
) -> None:
    """Raise where files that changed here, path -> state, neither were sent nor need be.

    Those that are made again, or replaced, at this moment need not; nor those of which another
    machine's version lies at the url: the next look takes it.

    Raises
    ------
    DownloadError
        One was not sent.
    """
    left = [name for name, was in changed.items() if _is_left(root / name, url / name, notes, was)]
    if not left:
        return
    path, more = root / left[0], f" (and {len(left) - 1} more)" if left[1:] else ""
    for name, entry in files_of(path).items():
        member, at = path.parent / name, (url / left[0]).parent / name
        if not fits(member, entry, path) and (member.exists() or not exists(at)):
            raise DownloadError(
                f"{url / left[0]}{more}: was not sent: {member} is not what this manifest names. "
                f"Delete {path} and give the same command again."
            )
    raise DownloadError(
        f"{url / left[0]}{more}: does not lie there as it was sent: the store tells another "
        "length, or another machine sends it too; give the same command again."
    )


def fits(member: Path, entry: dict[str, Any], manifest: Path) -> bool:
    """Whether a file is what a manifest names; one that is newer than it is read for that."""
    with suppress(FileNotFoundError):
        status = member.stat()
        if status.st_size == entry["bytes"]:
            older = status.st_mtime_ns <= manifest.stat().st_mtime_ns
            return older or checksum(member) == entry["xxh3"]
    return False


def of_another(place: Any, sent: Sent | None) -> str | None:
    """State of what lies at a place of a url; None where nothing does, or what was sent."""
    remote = transfers.state_there(place)
    return None if sent is not None and remote == sent.remote else remote


def alike(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    with suppress(FileNotFoundError):
        return one.stat().st_size == other.stat().st_size and checksum(one) == checksum(other)
    return False


def _is_left(path: Path, place: Any, notes: Notes, was: tuple[int, int]) -> bool:
    if state(path) != was:
        return False
    with unless_locked(output_of(path)) as free:
        if not free or state(path) != was:
            return False
    sent = notes.of(path.relative_to(notes.root).as_posix())
    if sent is not None and sent.here == was:
        return False
    remote = of_another(place, sent)
    if remote is None:
        return True
    with suppress(BadInputError), reading(place):
        # Of another length than the store tells nobody takes it.
        return len(place.fs.cat_file(place.path)) != int(remote.partition("-")[0])
    return True
