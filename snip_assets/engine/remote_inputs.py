"""Files and folders at urls that a command reads as local ones: fetched whole, once.

Sources of a run are read in place instead, see `storage.remote_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import BadInputError, without_secrets
from .progress import track
from .remote_outputs import kept_in
from .storage import transfers
from .storage.folders import remove
from .storage.locks import lock
from .storage.remote_files import as_path, exists, info_of, is_remote, state_of
from .storage.sent import Notes, state

# What a folder is read for; other files in it stay where they are.
SUFFIXES = {".parquet", ".npy", ".bits", ".index", ".json", ".safetensors", ".pt", ".pth"}
LIST = "shards.json"
# Place here -> url, of a folder or a file.
_copies: dict[Path, Any] = {}


def local_copy(location: str | Path) -> Path:
    """A local path of what a location names: itself, or what was fetched from a url.

    With a file comes the list of shards beside it, as it would lie beside a local one.
    What has not changed at the url is not fetched again. Files lie below SNIP_WORK, or in
    `~/.cache/snip_assets`, and may be removed when nobody reads them.

    Parameters
    ----------
    location
        Path or url of a file, or of a folder, of which the files of our kinds are fetched.

    Raises
    ------
    BadInputError
        There is no such file or folder, or no access to it.
    DownloadError
        The store cannot be reached, or fails.
    DiskFullError
        There is no room for it.
    """
    there: Any = as_path(location)
    if not is_remote(there):
        return there
    place = kept_in("inputs", there)
    # As errors name it, see `told`.
    _copies[place] = there
    with lock(place):
        place.mkdir(parents=True, exist_ok=True)
        states = transfers.listed(there, deep=False)
        is_folder = bool(states)
        states = {n: s for n, s in states.items() if Path(n).suffix in SUFFIXES and n[0] != "."}
        if is_folder and not states:
            raise BadInputError(f"{there}: no file that is read here ({', '.join(SUFFIXES)}).")
        if is_folder:
            found = {name: (there / name, known) for name, known in states.items()}
        else:
            found = {**_shards(there), there.name: (there, state_of(info_of(there)))}
        _fetch(place, found)
    return place if is_folder else place / there.name


def _shards(there: Any) -> dict[str, tuple[Any, str]]:
    """The list of shards that tells whose rows those of a bitmap, or of row offsets, are."""
    folders = [there.parent]
    if there.parent.name == "dup_bitmap":
        # Of a run that noted it in its own folder alone.
        folders.append(there.parent.parent)
    for folder in folders:
        # Who may not list a folder is not told what is absent.
        with suppress(BadInputError):
            if exists(listed := folder / LIST):
                return {LIST: (listed, state_of(info_of(listed)))}
    return {}


def told(text: str) -> str:
    """A text with the urls of what was fetched in place of the copies here."""
    for place, there in _copies.items():
        url = without_secrets(str(there))
        text = text.replace(f"{place / there.name}", url).replace(str(place), url)
    return text


def same_place(one: Any, *others: Any) -> bool:
    """Whether a url means what one of some others does: by its store, however it is written."""

    def place(url: Any) -> tuple[type, str]:
        return type(url.fs), re.sub("/+", "/", url.path).strip("/")

    return place(one) in map(place, others)


def _fetch(place: Path, wanted: Mapping[str, tuple[Any, str]]) -> None:
    """Bring files here by name, each with its url and its state there; others leave."""
    notes = Notes(place)
    for path in place.iterdir():
        if path.name not in wanted and path.name[0] != ".":
            remove(path)
    known = notes.all()
    new = [
        name
        for name, (_, remote) in wanted.items()
        if not (own := known.get(name)) or (own.remote, own.here) != (remote, state(place / name))
    ]
    for name in track(new, "fetch", len(new), "files") if new else ():
        url, remote = wanted[name]
        temporary = place / f".{name}.part"
        transfers.to_local(url, temporary, int(remote.partition("-")[0]))
        temporary.replace(place / name)
        notes.note(name, remote)
