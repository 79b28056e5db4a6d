"""One file over http: streamed into a partial file, resumed, verified, renamed when whole.

Beside the file's place lie, while it downloads, `.{name}.part` and `.{name}.part.json` (the
server's ETag, the length). A cut download goes on from there by a range request with `If-Range`;
when the server's file has changed meanwhile, it starts over. Memory: one network block.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from . import progress
from .contents import HEAD, judge_file, judge_head, tells_its_end
from .errors import BadInputError
from .storage.files import digest_of, write_json
from .storage.locations import shown, web_address
from .storage.remote import AgainError, DownloadError, Session, content_range, redacted

BLOCK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """One file to fetch.

    Attributes
    ----------
    location
        Where it is; see the module.
    target
        Where it goes.
    form
        Format that its bytes must have (see `contents`); None: any.
    size
        Bytes that it must have; None: unknown.
    checksum
        `sha256:HEX` or `md5:HEX` that it must have; None: unknown.
    """

    location: str
    target: Path
    form: str | None = None
    size: int | None = None
    checksum: str | None = None


def verify(path: Path, wanted: Wanted) -> None:
    """Hold a file against everything known about it.

    Raises
    ------
    BadInputError
        Its size, its checksum or its content differs.
    """
    size = path.stat().st_size
    where = shown(wanted.location)
    if wanted.size is not None and size != wanted.size:
        raise BadInputError(f"{where}: {size} bytes came, not {wanted.size}; not the file meant.")
    try:
        judge_file(path, wanted.form)
    except BadInputError as error:
        raise BadInputError(str(error).replace(str(path), where)) from error
    if wanted.checksum:
        kind, _, value = wanted.checksum.partition(":")
        digest = hashlib.new(kind)
        with open(path, "rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != value.lower():
            raise BadInputError(f"{where}: its {kind} is {digest.hexdigest()}, not {value}.")


class Download:
    """One file over http: the partial file, what is known of it, and how it goes on."""

    def __init__(self, session: Session, wanted: Wanted) -> None:
        self.session, self.wanted = session, wanted
        self.url = web_address(wanted.location)
        target = wanted.target
        self.part = target.parent / f".{target.name}.part"
        self.state_path = target.parent / f".{target.name}.part.json"
        self.state: dict[str, Any] = {}
        self.transferred = self.furthest = 0

    def run(self) -> int:
        """Bring the file to its place; bytes that came over the network for it."""
        with _opened(self.part, self.wanted.target) as handle:
            self.state = self._read_state()
            if not self.state:
                handle.truncate(0)
            self.furthest = self.part.stat().st_size
            self.session.retry(lambda: self._attempt(handle), self.url)
            handle.flush()
            os.fsync(handle.fileno())
            try:
                checksum = self.wanted.checksum or self.state.get("checksum")
                wanted = replace(self.wanted, checksum=checksum)
                self._require_end(wanted)
                verify(self.part, wanted)
            except BadInputError:
                self._forget(handle)
                raise
            self.part.replace(self.wanted.target)
        self.state_path.unlink(missing_ok=True)
        return self.transferred

    def _require_end(self, wanted: Wanted) -> None:
        """Raise BadInputError where nothing tells whether the file was cut."""
        known = self.state.get("framed") or wanted.size is not None or wanted.checksum
        if not known and not tells_its_end(self.part, wanted.form):
            raise BadInputError(
                f"{redacted(self.url)}: the server does not say how long the file is, so nobody "
                "can tell whether all of it came; give another mirror, or its bytes or checksum in "
                "a catalogue (--catalogue)."
            )

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_text())
        except (OSError, ValueError):
            return {}
        return state if state.get("location") == digest_of(self.wanted.location) else {}

    def _forget(self, handle: BinaryIO) -> None:
        handle.truncate(0)
        self.state = {}
        self.state_path.unlink(missing_ok=True)

    def _attempt(self, handle: BinaryIO) -> None:
        have = os.fstat(handle.fileno()).st_size
        total, validator = self.state.get("total"), self.state.get("validator")
        if have and have == total:
            return
        if have and not validator:  # nothing proves that the rest belongs to what we have
            self._forget(handle)
            have = 0
        headers = {"Range": f"bytes={have}-", "If-Range": str(validator)} if have else {}
        with self.session.get(self.url, headers) as reply:
            if not self._goes_on(reply, have):
                if reply.status_code != 200:
                    self._forget(handle)
                    raise AgainError("the file changed on the server")
                handle.truncate(0)
                have = 0
            self._note(reply, have)
            self._receive(reply, handle, have)

    def _goes_on(self, reply: httpx.Response, have: int) -> bool:
        """Whether this answer continues the partial file."""
        if reply.status_code != 206 or not have:
            return False
        span = content_range(reply)
        same = _validator(reply) in (None, self.state.get("validator"))
        return span is not None and span[0] == have and span[2] == self.state.get("total") and same

    def _note(self, reply: httpx.Response, have: int) -> None:
        if have:
            return
        length = reply.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if self.wanted.size is not None and total not in (None, self.wanted.size):
            raise BadInputError(
                f"{redacted(self.url)}: {total} bytes on the server, not {self.wanted.size}; "
                "not the file meant."
            )
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total > free:
            raise DownloadError(
                f"{self.wanted.target}: needs {total:,} bytes, {free:,} are free on the disk; make "
                "room or choose another folder."
            )
        self.state = {
            "location": digest_of(self.wanted.location),
            "validator": _validator(reply),
            "total": total,
            # Pieces with their lengths end with an empty one.
            "framed": total is not None or "chunked" in reply.headers.get("Transfer-Encoding", ""),
            "checksum": _announced_checksum(reply),
        }
        write_json(self.state_path, self.state)

    def _receive(self, reply: httpx.Response, handle: BinaryIO, have: int) -> None:
        total, done = self.state["total"], have
        head = b"" if not have else None
        try:
            with progress.task(self.wanted.target.name, total or 0, "bytes") as bar:
                bar.advance(have)
                for block in reply.iter_raw():
                    self.session.check()
                    if head is not None:
                        head += block[: HEAD - len(head)]
                        if len(head) == HEAD:
                            self._judge(head, handle)
                            head = None
                    handle.write(block)
                    done += len(block)
                    bar.advance(len(block))
                    self.transferred += len(block)
        except httpx.TransportError as error:
            handle.flush()
            gained, self.furthest = done > self.furthest, max(done, self.furthest)
            raise AgainError(f"the connection was cut at byte {done}", gained=gained) from error
        handle.flush()
        if head is not None:
            self._judge(head, handle)
        if total is not None and done != total:
            raise AgainError(f"{done} bytes came of {total}")

    def _judge(self, head: bytes, handle: BinaryIO) -> None:
        try:
            judge_head(head, self.wanted.form, redacted(self.url))
        except BadInputError:
            self._forget(handle)
            raise


@contextmanager
def _opened(part: Path, target: Path) -> Iterator[BinaryIO]:
    """The partial file, locked: two processes must not write it."""
    while True:
        with open(part, "ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DownloadError(f"{target}: another process is downloading it.") from error
            # Another process may have finished it, and given it its name, since it was opened.
            if part.exists() and os.path.samestat(os.fstat(handle.fileno()), part.stat()):
                yield handle
                return


def _validator(reply: httpx.Response) -> str | None:
    """What proves that two answers are of the same file: a strong ETag, else the date."""
    tag = reply.headers.get("ETag", "")
    # One beyond ASCII could not be sent back.
    if tag.isascii() and tag and not tag.startswith("W/"):
        return tag
    return reply.headers.get("Last-Modified")


def _announced_checksum(reply: httpx.Response) -> str | None:
    """Hugging Face names the SHA-256 of a large file in the redirect to its store."""
    for step in (*reply.history, reply):
        tag = step.headers.get("X-Linked-ETag", "").strip('"').removeprefix("W/").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return f"sha256:{tag}"
    return None
