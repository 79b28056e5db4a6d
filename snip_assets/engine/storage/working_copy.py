"""The working copy of an output folder that lies at a url.

Renames, locks and memory maps need a local folder, so stations work in one, and each output goes
to the url once it is whole: its files, then its manifest. What the url holds and the working copy
lacks comes when it is opened. The former manifest leaves the url before files that replace those
it names, so whoever looks meanwhile finds an output that is unfinished, never a wrong one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from snip_assets.engine.errors import BadInputError, SnipError, StaleOutputError

from . import listings, mending, transfers
from .files import MANIFEST, checksum, manifest_path
from .folders import remove
from .locks import lock, unless_locked
from .parts import UNSENT, Parts
from .remote import DownloadError
from .remote_files import exists
from .room import trim
from .sent import Notes, Sent, files_of, output_of, state
from .unsent import alike, fits, of_another, require_sent

_log = logging.getLogger(__name__)
AT_ONCE = 8
# Seconds between two looks for what can be given up.
BETWEEN_TRIMS = 5.0
# Where files are while they come; after so many seconds nobody waits for one any more.
_COMING, OLD = ".coming", 24 * 3600.0
# Where the locks of files lie that are sent.
_SENDING = ".sending"


class WorkingCopy:
    """A local folder whose outputs go to a url and come from there.

    Several threads, processes and machines may have copies of one url. Of an output that two make
    at the same time, the last one stays.

    Attributes
    ----------
    root
        The local folder; once all is sent it may be removed at any time.
    url
        Where the outputs belong.
    limit
        Bytes that files here may take; those that lie at the url go when more are needed, the ones
        not used for longest first, but none used in the last minute. 0: no limit.
    refreshed
        When it was last made like the url (`time.monotonic`).
    """

    def __init__(self, root: Path, url: Any, parts: Parts, limit: int = 0) -> None:
        self.root, self.url, self.parts, self.limit = root, url, parts, limit
        self.refreshed = float("-inf")
        self._notes = Notes(root)
        self._pool = ThreadPoolExecutor(AT_ONCE, "send")
        self._sending: dict[Future[None], str] = {}
        # Of a file that comes or is sent: one thread at a time. By its path as text: Python code
        # compares paths, and lets another thread in that makes a second lock.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._room, self._trimmed = threading.Lock(), float("-inf")
        self._bytes = limit + 1

    def refresh(self) -> None:
        """Take what is new at the url, and send what a killed process had not sent.

        Raises
        ------
        DownloadError
            The url cannot be reached, or refuses a file.
        StaleOutputError
            What was sent there lies there no more, nor anything else.
        """
        with lock(self.root / "working_copy"):
            self._sweep()
            # Before the listing: what is sent meanwhile is not taken for what was removed there.
            known = {n: s for n, s in self._notes.all().items() if self.parts.holds(n)}
            here = listings.here(self.root, self.parts)
            there = listings.there(self.url, self.parts, self._pool)
            if self.parts.always in known and self.parts.always not in there:
                raise StaleOutputError(
                    f"{self.url}: {self.parts.always} was sent there, and is gone. Is this the "
                    f"right store? To begin anew, remove {self.root}."
                )
            # What went here by other hands comes again.
            as_there = {n: s.remote for n, s in known.items() if s.discarded or n in here}
            news = [(name, now) for name, now in there.items() if as_there.get(name) != now]
            self._each(self._take, news)
            for name in [name for name in known if name not in there]:
                self._take_removal(name, known[name])
        now = listings.here(self.root, self.parts)
        self._each(self._come, [(n,) for n in now if self.parts.comes_at_once(n)])
        # Who only reads need not be able to write there.
        with suppress(DownloadError):
            self.send()
        self.refreshed = time.monotonic()

    def send(self) -> None:
        """Send all that changed here, remove what was discarded, and wait until that is done.

        Raises
        ------
        DownloadError
            The url cannot be reached, or refuses a file, or does not hold what was sent. What was
            made is kept here, and sent the next time.
        """
        # What failed is tried again.
        with suppress(SnipError):
            self.settle()
        known, here = self._notes.all(), listings.here(self.root, self.parts)
        changed = [n for n, now in here.items() if n not in known or known[n].here != now]
        # Parts of an output before the whole.
        changed.sort(key=lambda name: -name.count("/"))
        self._each(self._send, [(name,) for name in changed])
        for name, sent in known.items():
            if sent.discarded and name not in here:
                self._remove_there(name, sent)
        self._make_room(0)
        require_sent(self.root, self.url, self._notes, {name: here[name] for name in changed})

    def mend(self, outputs: Sequence[Path]) -> list[str]:
        """Send again what is here, and is lost at the url: as `mending.mend`."""
        return mending.mend(self.url, self._notes, outputs)

    def written(self, path: Path) -> None:
        """Send a file that was written, or an output whose manifest was, in the background."""
        name = path.relative_to(self.root).as_posix()
        if self.parts.holds(name):
            self._sending[self._pool.submit(self._send, name)] = name

    def abandon(self) -> None:
        """Send nothing more; the next command does."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def discard(self, path: Path) -> None:
        """Remove a file, at the url too with the next `send`; of an output, its manifest.

        What is missing here otherwise comes again.
        """
        # What is on its way there is noted first.
        name = self._name(path)
        with self._locks[str(path)], lock(self.root / _SENDING / name):
            self._notes.discard(name)
            path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Wait until what was written so far is sent.

        Raises
        ------
        DownloadError
            As `send` does.
        """
        futures = list(self._sending)
        wait(futures)
        for future in futures:
            self._sending.pop(future, None)
        for future in futures:
            future.result()

    def fetch(self, output: Path, names: Iterable[str]) -> None:
        """Have some files of an output come, if they are those that lie at the url.

        Parameters
        ----------
        names
            As the manifest has them, relative to the folder of the output.
        """
        manifest = manifest_path(output)
        sent, own = self._notes.of(self._name(manifest)), files_of(manifest)
        for name in names:
            if sent is not None and name in own and sent.files.get(name) == own[name]:
                # What the url lacks is told as missing, with what makes it again.
                with suppress(BadInputError):
                    self._fetch(output.parent / name, own[name], manifest)

    def fetch_file(self, path: Path) -> None:
        """Have a file come that is not here, whichever output it is of.

        Raises
        ------
        StaleOutputError
            It lies at the url no more, or not as it was.
        """
        manifest = None
        for output in (path, *path.parents):
            if output == self.root or path.exists():
                break
            name = path.relative_to(output.parent).as_posix()
            if name in files_of(manifest_path(output)) and self.holds(output):
                manifest = manifest_path(output)
                self.fetch(output, [name])
        if manifest is not None and not path.exists():
            raise StaleOutputError(
                f"{self._at(path)}: lost or damaged. Remove {self._at(manifest)} and run `snip "
                "dedup` again."
            )

    def holds(self, output: Path) -> bool:
        """Whether an output lies at the url as its manifest here says."""
        manifest = manifest_path(output)
        sent = self._notes.of(self._name(manifest))
        return sent is not None and sent.here == state(manifest)

    def _take(self, name: str, remote: str) -> None:
        """Take a file from the url; of an output, its manifest: former files of it go."""
        path = self.root / name
        with unless_locked(output_of(path)) as free:
            # What is made here just now, or replaced there, the next look finds.
            if free and self._took(path, remote):
                self._notes.note(name, remote)

    def _took(self, path: Path, remote: str) -> bool:
        try:
            with self._fetched(path) as temporary:
                if temporary.stat().st_size != int(remote.partition("-")[0]):
                    # It is just being written there.
                    return False
                if not path.name.endswith(MANIFEST) and alike(path, temporary):
                    return True
                self._give_way(path, files_of(temporary, manifest=path.name.endswith(MANIFEST)))
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(path)
        except BadInputError:
            if exists(self._at(path)):
                raise
            return False
        return True

    def _give_way(self, path: Path, now: dict[str, Any]) -> None:
        """Remove what another manifest, or file, replaces; while it is there, none is taken for it.

        A file without manifest that was written here and not sent is kept beside.
        """
        former, sealed = files_of(path), state(path)
        sent = self._notes.of(self._name(path))
        if sealed and not path.name.endswith(MANIFEST) and (sent is None or sent.here != sealed):
            aside = path.with_name(f"{path.name}{UNSENT}")
            path.replace(aside)
            _log.warning("%s was changed elsewhere too; what was not sent is %s", path, aside)
        for member in {*former, *now}:
            written = state(path.parent / member)
            # What is newer than its manifest a killed run has left.
            left = sealed is None or (written is not None and written[1] > sealed[1])
            if left or former.get(member) != now.get(member):
                remove(path.parent / member)

    def _take_removal(self, name: str, sent: Sent) -> None:
        """What was removed at the url goes here too, unless it was made anew since."""
        path = self.root / name
        with unless_locked(output_of(path)) as free:
            if not free:
                return
            if state(path) == sent.here:
                path.unlink(missing_ok=True)
                if name.endswith(MANIFEST):
                    remove(output_of(path))
            self._notes.forget(name)

    def _come(self, name: str) -> None:
        """Have all files of an output come that are not here."""
        path = self.root / name
        missing = [n for n in files_of(path) if not (path.parent / n).exists()]
        self.fetch(output_of(path), missing)

    def _send(self, name: str) -> None:
        # One thread at a time, and one process.
        with self._locks[str(self.root / name)], lock(self.root / _SENDING / name):
            self._send_alone(name)

    def _send_alone(self, name: str) -> None:
        path = self.root / name
        now, sent = state(path), self._notes.of(name)
        if now is None or (sent is not None and sent.here == now):
            return
        plain = not name.endswith(MANIFEST)
        if plain and (remote := of_another(self._at(path), sent)):
            self._take(name, remote)
            return
        files, former = files_of(path), sent.files if sent is not None else {}
        there = {**former, **self._sent_parts(path)}
        if sent is not None and transfers.state_there(self._at(path)) != sent.remote:
            # Another machine has been there.
            there = {}
        fresh = {n: entry for n, entry in files.items() if there.get(n) != entry}
        if not all(fits(path.parent / n, entry, path) for n, entry in fresh.items()):
            # It is being made again: it is sent when that is done.
            return
        gone = [n for n in former if n not in files]
        if fresh or gone:
            transfers.remove(self._at(path))
            # Should this fail, what lies there is not known.
            self._notes.forget(name)
        # Where another machine writes the same, its output stays: the next look takes it.
        for place in (path.parent / n for n in fresh):
            if transfers.to_remote(place, self._at(place)) is None:
                return
        remote = transfers.to_remote(path, self._at(path))
        for member in gone:
            transfers.remove(self._at(path.parent / member))
        # A manifest that was written again meanwhile may name other files.
        if remote is not None and (plain or state(path) == now):
            self._notes.note(name, remote, now)
        self._make_room(sum(entry["bytes"] for entry in fresh.values()))

    def _sent_parts(self, path: Path) -> dict[str, Any]:
        """What lies at the url of an output whose parts have manifests of their own."""
        output = output_of(path)
        within = f"{self._name(output)}/"
        for future, name in list(self._sending.items()):
            if name.startswith(within):
                # It was submitted before the whole was, so it does not wait for us.
                wait([future])
        found: dict[str, Any] = {}
        for name, sent in self._notes.below(within).items():
            folder = (self.root / name).parent
            for member, entry in sent.files.items():
                found[(folder / member).relative_to(output.parent).as_posix()] = entry
        return found

    def _remove_there(self, name: str, sent: Sent) -> None:
        path = self.root / name
        transfers.remove(self._at(path))
        for member in sent.files:
            transfers.remove(self._at(path.parent / member))
        self._notes.forget(name)

    def _fetch(self, path: Path, entry: dict[str, Any], manifest: Path) -> None:
        with self._locks[str(path)]:
            if not path.exists():
                self._make_room(entry["bytes"])
                with self._fetched(path) as temporary:
                    if checksum(temporary) != entry["xxh3"]:
                        raise BadInputError(f"{self._at(path)}: not what its manifest names.")
                    # As old as its manifest, like one that was made here.
                    with suppress(FileNotFoundError):
                        os.utime(temporary, ns=(time.time_ns(), manifest.stat().st_mtime_ns))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(path)

    @contextmanager
    def _fetched(self, path: Path) -> Iterator[Path]:
        """What lies at the url, in a temporary file."""
        # Not beside its place: whoever locks an output removes temporaries of it.
        folder = self.root / _COMING
        folder.mkdir(exist_ok=True)
        temporary = folder / uuid4().hex
        try:
            transfers.to_local(self._at(path), temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed processes left of files that came."""
        for path in (self.root / _COMING).glob("*"):
            if (found := state(path)) and time.time() - found[1] / 1e9 > OLD:
                path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Count bytes that came or were sent; give up files that lie at the url above the limit."""
        if not self.limit:
            return
        with self._room:
            self._bytes += size
            now = time.monotonic()
            if self._bytes > self.limit and now - self._trimmed > BETWEEN_TRIMS:
                self._bytes = trim(self.root, self._notes, self.parts, self.limit - size)
                self._trimmed = now

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _at(self, path: Path) -> Any:
        return self.url / self._name(path)

    def _each(self, work: Callable[..., None], some: list[tuple[Any, ...]]) -> None:
        futures = [self._pool.submit(work, *arguments) for arguments in some]
        wait(futures)
        for future in futures:
            future.result()
