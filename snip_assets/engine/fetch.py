"""Downloads that can be trusted: resumed, verified, whole or absent, fetched once.

A finished file has a manifest, so that a second call asks the server nothing. Locations:
`https://…`, `hf:datasets/OWNER/NAME/path` (Hugging Face, or the mirror in `HF_ENDPOINT`),
`gdrive:ID` or a Drive link (through gdown), `file://…`, a path.
"""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from . import progress
from .contents import judge_file
from .download import Download, Wanted, verify
from .errors import BadInputError
from .storage import transfers
from .storage.files import atomic_path, current, digest_of, manifest_path, seal
from .storage.locations import drive_id, local_path, shown
from .storage.remote import DownloadError, Policy, Session
from .storage.working_copies import discard, here


@dataclass(frozen=True)
class Fetched:
    """A file that is in place. `transferred`: bytes that came over the network for it, now."""

    path: Path
    bytes: int
    transferred: int


def fetch(wanted: Wanted, session: Session | None = None, *, again: bool = False) -> Fetched:
    """Bring one file to its place, unless it is there.

    Parameters
    ----------
    again
        Fetch even if it is there.

    Notes
    -----
    The manifest tells when it was fetched: a file has another time on each machine.

    Raises
    ------
    DownloadError
        The server does not deliver; what has arrived is kept for the next call.
    BadInputError
        No such file, access denied, or the content is not what it should be; nothing is kept.
    """
    known = {"location": digest_of(wanted.location), "checksum": wanted.checksum or ""}
    target = wanted.target
    try:
        if not again and (found := current(target, known)):
            return Fetched(target, found.bytes, 0)
        transferred = _bring(wanted, session, again)
        at = time_text(datetime.now(timezone.utc).timestamp())
        manifest = seal(target, known, source=shown(wanted.location), fetched=at)
    except OSError as error:
        raise DownloadError(
            f"{target}: cannot be written ({error.strerror or error}); make room, or choose "
            "another folder."
        ) from error
    return Fetched(target, manifest.bytes, transferred)


def time_text(seconds: float) -> str:
    """A time as manifests have it, UTC: the later one is the greater text."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")


def _bring(wanted: Wanted, session: Session | None, again: bool) -> int:
    """Put the file into its place; bytes that came over the network for it."""
    discard(manifest_path(wanted.target))
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    if path := local_path(wanted.location):
        return _copy(path, wanted)
    if (there := transfers.in_store(wanted.location)) is not None:
        with atomic_path(wanted.target) as temporary:
            transfers.to_local(there, temporary)
            verify(temporary, wanted)
            return temporary.stat().st_size
    if identity := drive_id(wanted.location):
        return _drive(identity, wanted, _drive_part(identity, wanted, again))
    if session is not None:
        return Download(session, wanted).run()
    with Session() as own:
        return Download(own, wanted).run()


class _Together:
    """Part of a shared piece of work: advances it, does not close it."""

    def __init__(self, whole: progress.Task) -> None:
        self.whole, self.lock = whole, threading.Lock()

    def advance(self, amount: int = 1) -> None:
        """Say that more is done, from any thread."""
        with self.lock:
            self.whole.advance(amount)

    def close(self) -> None:
        """Nothing: others go on."""


def fetch_all(
    wanted: Iterable[Wanted], policy: Policy | None = None, *, again: bool = False
) -> Iterator[Fetched]:
    """Fetch several files, `policy.at_once` at a time; yield them in the order asked for.

    At most twice as many are finished or under way as download at once, so whoever consumes
    (and deletes) them bounds the disk that they take. Progress: one piece of work, in bytes, of
    a total that is not known before (0).
    """
    policy = policy or Policy()
    with (
        progress.task("download", 0, "bytes") as bar,
        Session(policy) as session,
        ThreadPoolExecutor(policy.at_once) as pool,
    ):
        part = _Together(bar)
        waiting: deque[Future[Fetched]] = deque()
        try:
            for item in wanted:
                waiting.append(pool.submit(_fetch_part, item, session, part, again))
                if len(waiting) >= 2 * policy.at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Whoever stops early (an error, Ctrl-C) must not wait for gigabytes under way.
            session.stopping.set()
            for future in waiting:
                future.cancel()


def _fetch_part(wanted: Wanted, session: Session, part: _Together, again: bool) -> Fetched:
    with progress.reporting(lambda *_: part):
        return fetch(wanted, session, again=again)


def localise(
    location: str,
    folder: Path,
    name: str,
    form: str | None = None,
    policy: Policy | None = None,
    *,
    again: bool = False,
) -> Path:
    """A local file for a location: itself when it is local, else fetched into `folder`.

    Raises
    ------
    BadInputError
        There is no such file, or it is not of its format.
    """
    if path := local_path(location):
        if not here(path).is_file():
            raise BadInputError(f"{path}: no such file.")
        judge_file(path, form)
        return path
    with Session(policy) as session:
        return fetch(Wanted(location, folder / name, form), session, again=again).path


def _copy(source: Path, wanted: Wanted) -> int:
    if not source.is_file():
        raise BadInputError(f"{source}: no such file.")
    with atomic_path(wanted.target) as temporary:
        shutil.copyfile(source, temporary)
        verify(temporary, wanted)
    return 0


def _drive_part(identity: str, wanted: Wanted, again: bool) -> Path:
    """Where gdown writes; what is left there of this very id it takes up, unless `again`."""
    part = wanted.target.parent / f".{wanted.target.name}.{digest_of(identity)}.drive"
    for left in part.parent.iterdir() if again else ():
        # Unfinished ones have the name and more.
        if left.name.startswith(part.name):
            left.unlink(missing_ok=True)
    return part


def _drive(identity: str, wanted: Wanted, part: Path) -> int:
    """Through gdown, which knows Drive's confirmation pages; it resumes by itself."""
    import gdown
    from gdown.exceptions import DownloadError as DriveCutError
    from gdown.exceptions import FileURLRetrievalError
    from requests import RequestException

    with progress.task(wanted.target.name, wanted.size or 0, "bytes") as bar:
        seen = [0]

        def tell(done: int, total: int | None) -> None:
            bar.advance(done - seen[0])
            seen[0] = done

        try:
            gdown.download(
                id=identity,
                output=str(part),
                quiet=True,
                resume=True,
                use_cookies=False,
                progress=tell,
                timeout=60,
                retries=Policy.attempts,
            )
        except FileURLRetrievalError as error:
            raise DownloadError(
                f"Google Drive file {identity}: Drive gives no access (its download quota is used "
                "up, or the file is not shared any more). Try again in a day, or download it in a "
                "browser and give its path."
            ) from error
        except (RequestException, DriveCutError, OSError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            if isinstance(error, RequestException):
                reason = "cannot connect"
            raise DownloadError(
                f"Google Drive file {identity}: {reason}; run the same command again, or download "
                "it in a browser and give its path."
            ) from error
    try:
        verify(part, wanted)
    except BadInputError:
        part.unlink(missing_ok=True)
        raise
    size = part.stat().st_size
    part.replace(wanted.target)
    return size
