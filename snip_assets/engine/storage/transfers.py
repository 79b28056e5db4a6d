"""Files sent to a store, taken from there, listed and removed there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snip_assets.engine.errors import BadInputError, DiskFullError, SnipError

from .files import is_full
from .remote import DownloadError
from .remote_files import as_path, exists, info_of, reading, state_of
from .sent import state

# Of a file that was sent, while it has another length.
LOOKS, SECONDS_BETWEEN_LOOKS = 4, 0.5


@contextmanager
def writing(place: Any) -> Iterator[None]:
    """Name the file and the cure in whatever a store fails with."""
    try:
        yield
    except SnipError:
        raise
    except PermissionError as error:
        raise DownloadError(
            f"{place}: cannot be written (access denied); check the credentials and what they "
            "allow, then give the same command again: it goes on from here."
        ) from error
    except Exception as error:
        # Each store has errors of its own: of the network, of credentials, of the service.
        raise DownloadError(
            f"{place}: cannot be written ({type(error).__name__}: {error}); once that is mended, "
            "the same command goes on from here."
        ) from error


def to_remote(path: Path, place: Any) -> str | None:
    """Send a file, and return the state that it has there.

    None if it is gone already, here or there, or of another length: another machine writes there
    too.

    Raises
    ------
    DownloadError
        The store refused it.
    """
    if (found := state(path)) is None:
        return None
    with writing(place):
        try:
            place.fs.put_file(str(path), place.path)
        except FileNotFoundError:
            if not path.exists():
                return None
            _make_folder(place.fs, place.parent.path)
            place.fs.put_file(str(path), place.path)
        for look in range(LOOKS):
            if look:
                # Not every store replaces a file at once.
                time.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                info = info_of(place)
            except BadInputError:
                if exists(place):
                    raise
                return None
            if info["size"] == found[0]:
                return state_of(info)
    return None


def to_remote_alone(path: Path, place: Any) -> str:
    """Send a file to where nobody else writes.

    Raises
    ------
    DownloadError
        The store refused it, or does not hold it afterwards.
    """
    if (found := to_remote(path, place)) is None:
        raise DownloadError(f"{place}: not all of {path} arrived; run again.")
    return found


def _make_folder(store: Any, folder: str) -> None:
    """Make a folder where a store has real ones; never what is at its top, such as a bucket."""
    above = folder.rstrip("/").rpartition("/")[0]
    if above and not store.exists(folder):
        _make_folder(store, above)
        with suppress(FileExistsError):
            store.mkdir(folder, create_parents=False)


def state_there(place: Any) -> str | None:
    """State of a file in a store; None where there is none."""
    return state_of(info_of(place)) if exists(place) else None


def to_local(place: Any, path: Path, size: int | None = None) -> None:
    """Take a file from a store, of a size where that is known.

    Raises
    ------
    BadInputError
        There is no such file.
    DownloadError
        The store cannot be reached, or fails.
    DiskFullError
        There is no room for it.
    """
    try:
        with reading(place):
            place.fs.get_file(place.path, str(path))
        if size is not None and path.stat().st_size != size:
            raise DownloadError(f"{place}: {path.stat().st_size} bytes came of {size}; run again.")
    except Exception as error:
        if is_full(error):
            raise DiskFullError(f"{path}: no space left for a copy of {place}.") from error
        raise


def remove(place: Any) -> None:
    """Remove a file from a store, if it is there."""
    with writing(place), suppress(FileNotFoundError):
        place.fs.rm_file(place.path)


def in_store(location: str) -> Any | None:
    """What a location names in an object store; None where it is none of an object store."""
    scheme, found, _ = location.partition("://")
    if not found or scheme.lower() in ("http", "https", "file", "hf"):
        return None
    return as_path(location)


def listed(folder: Any, *, deep: bool) -> dict[str, str]:
    """Path below a folder -> state of each file there, listed anew; none where it is not there.

    Raises
    ------
    BadInputError
        There is no access to it.
    DownloadError
        The store cannot be reached.
    """
    with reading(folder):
        folder.fs.invalidate_cache()
        try:
            infos = folder.fs.find(folder.path, maxdepth=None if deep else 1, detail=True)
        except FileNotFoundError:
            return {}
    top = f"{folder.path.strip('/')}/"
    files = ((name.lstrip("/"), info) for name, info in infos.items() if info.get("type") == "file")
    return {n.removeprefix(top): state_of(i) for n, i in files if n.startswith(top)}
