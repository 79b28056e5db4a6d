"""Output folders at urls: each has a working copy here, in which the stations work.

`storage.working_copy` says how the two are kept alike.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import copy_out, forecast
from .errors import BadInputError
from .layout import STATIONS
from .storage import transfers, working_copies
from .storage.files import MANIFEST, digest_of
from .storage.locations import local_path
from .storage.parts import Parts
from .storage.remote import DownloadError
from .storage.remote_files import as_path, exists, home_expanded
from .storage.sent import Notes, state
from .storage.working_copy import WorkingCopy

# Where working copies lie, and how many GB each may take.
PLACE, LIMIT = "SNIP_WORK", "SNIP_WORK_GB"
PARTS = Parts(
    files=frozenset(
        ("shards.json", "row_offsets.npy", "settings.json", "reviewed_pairs.parquet", forecast.FILE)
    ),
    plain=frozenset(("audit",)),
    sealed=frozenset((*STATIONS, "dedup_report", "published")),
    # Read by what asks for folders and JSON; small.
    at_once=frozenset(("metadata", "snip_model", "trained_index")),
    always="shards.json",
)
# Seconds after which a process looks again for what other machines have sent.
FRESH = 30.0
# Seconds for which a store that was not reached is not asked again: its client tries for long, and
# one look of a sensor asks several times.
PATIENCE = 5.0
_READ_ONLY = ("http", "https")
_opening: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def folder(text: str | Path) -> Path:
    """The folder in which an output folder is worked on: itself, or the working copy of a url.

    Raises
    ------
    BadInputError
        No such kind of url is known, or nothing can be written there; or it holds a copy that
        `snip publish` made.
    DownloadError
        The url cannot be reached.
    """
    given = str(text)
    if (here := _local(given)) is not None:
        return here
    with _opening[given]:
        at, former = _unreached.get(given, (0.0, None))
        if former is not None and time.monotonic() - at < PATIENCE:
            raise DownloadError(former) from former
        try:
            copy = _open.get(given) or _opened(given)
            if time.monotonic() - copy.refreshed > FRESH:
                copy.refresh()
        except DownloadError as error:
            _unreached[given] = time.monotonic(), error
            raise
        _unreached.pop(given, None)
        return copy.root


_open: dict[str, WorkingCopy] = {}
# Url -> when it was last not reached, and what was said.
_unreached: dict[str, tuple[float, DownloadError]] = {}
# Of what commands write once: place here -> url.
_boxes: dict[Path, Any] = {}


def _local(given: str) -> Path | None:
    return local_path(given) if "://" in given else home_expanded(given)


def _opened(url: str) -> WorkingCopy:
    there = _writable(url)
    if _is_copy(there):
        raise BadInputError(
            f"{url}: holds a copy that `snip publish` made; give the output folder of the run "
            "itself, or another place."
        )
    copy = WorkingCopy(kept_in("outputs", there), there, PARTS, int(_limit_gb() * 1e9))
    copy.refresh()
    working_copies.add(copy)
    _open[url] = copy
    return copy


def _is_copy(there: Any) -> bool:
    mark = there / copy_out.MARK
    try:
        return exists(mark)
    except (BadInputError, DownloadError) as error:
        # Of the url that was given, and not of a file that nobody knows of.
        raise type(error)(str(error).replace(str(mark), str(there))) from error


def _writable(url: str) -> Any:
    if url.partition("://")[0].lower() in _READ_ONLY:
        raise BadInputError(
            f"{url}: outputs cannot be written there; give a folder, s3:// or gs://."
        )
    return as_path(url)


def kept_in(kind: str, there: Any) -> Path:
    """Where on this machine what lies at a url is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = home_expanded(os.environ.get(PLACE) or f"{cache}/snip_assets").resolve()
    # SQLAlchemy takes some signs of a path for its own.
    name = re.sub(r"[^\w.-]", "_", there.name) or "top"
    found = place / kind / f"{name}-{digest_of(str(there))[:12]}"
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{found.parent}: cannot be made ({error.strerror}); give another {PLACE}."
        ) from error
    return found


def outbox(text: str | Path) -> Path:
    """A folder whose files `send` brings to a url, where one is given; else that folder itself.

    For what a command writes once. Nothing that lies at the url comes here.

    Raises
    ------
    BadInputError
        No such kind of url is known, nothing can be written there, or it is the folder of a
        station in an output folder.
    """
    given = str(text)
    if (here := _local(given)) is not None:
        return here
    there = _writable(given)
    marks = ("shards.json", f"duplicate_groups{MANIFEST}")
    for part in (there, *there.parents):
        if part.name in STATIONS and any(exists(part.parent / mark) for mark in marks):
            raise BadInputError(f"{given}: holds outputs of a run; choose another place.")
    root = kept_in("written", there)
    if root.is_dir():
        _forget_sent(root, there)
    _boxes[root] = there
    return root


def _forget_sent(root: Path, there: Any) -> None:
    """Remove what earlier commands sent, where others have since removed or replaced it."""
    # Before the url is looked at: another command may be sending.
    noted = Notes(root).all()
    already = transfers.listed(there, deep=True)
    for name, known in noted.items():
        path = root / name
        if already.get(name) != known.remote and path.is_file() and state(path) == known.here:
            path.unlink()


def _send_box(root: Path, there: Any) -> None:
    notes, already = Notes(root), transfers.listed(there, deep=True)
    names = (p.relative_to(root).parts for p in root.rglob("*") if p.is_file())
    files = [root.joinpath(*parts) for parts in names if not any(part[0] == "." for part in parts)]
    # Who sees a manifest may take what it names for whole.
    for path in sorted(files, key=lambda p: (p.name.endswith(MANIFEST), p)):
        name = path.relative_to(root).as_posix()
        known = notes.of(name)
        if known is None or (known.here, known.remote) != (state(path), already.get(name)):
            notes.note(name, transfers.to_remote_alone(path, there / name))


def _limit_gb() -> float:
    text = os.environ.get(LIMIT) or "0"
    with suppress(ValueError):
        if math.isfinite(number := float(text)) and number >= 0:
            return number
    raise BadInputError(f"{LIMIT}={text}: not a number of GB; change it or unset it.")


def refresh(root: Path) -> None:
    """Take what other machines have sent to the url of a working copy; else do nothing."""
    if (copy := working_copies.of(root)) is not None:
        copy.refresh()


def send(root: Path | None = None) -> None:
    """Wait until all that was made in a working copy (in all of this process) lies at its url.

    Raises
    ------
    DownloadError
        The url cannot be reached, or refuses a file; what was made is kept, and sent the next time.
    """
    copies = working_copies.every() if root is None else [working_copies.of(root)]
    for copy in copies:
        if copy is not None:
            copy.send()
    for place, there in _boxes.items() if root is None else ():
        if place.is_dir():
            _send_box(place, there)


def abandon() -> None:
    """Send nothing more in this process."""
    for copy in working_copies.every():
        copy.abandon()


def mend(root: Path, outputs: Sequence[Path]) -> list[str]:
    """Send outputs of a working copy, each whole here, again where files of them left the url.

    Returns
    -------
    Paths below the url of what was sent; none where the folder is no working copy.
    """
    copy = working_copies.of(root)
    return [] if copy is None else copy.mend(outputs)


def box_of(root: Path) -> Any | None:
    """The url at which what a command writes into this folder will lie; None: here."""
    return _boxes.get(root)


def address(root: Path) -> str:
    """What opens an output folder elsewhere: of a working copy the url, with its secrets."""
    copy = working_copies.of(root)
    return str(root) if copy is None else str(copy.url)


def named(path: Path) -> str:
    """What a user calls a path: below the url in a working copy, else itself."""
    for root, there in _boxes.items():
        if path.is_relative_to(root):
            return working_copies.joined(there, path.relative_to(root))
    return working_copies.named(path)
