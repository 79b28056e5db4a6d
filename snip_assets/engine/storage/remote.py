"""Requests that survive a bad network: retries, waits, tokens that stay secret.

Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), the Hugging Face token from
`HF_TOKEN` and its server from `HF_ENDPOINT`; a token goes to that server only and never into a
message, a file or a log.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from snip_assets.engine.errors import BadInputError, SnipError

T = TypeVar("T")

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOTAL = re.compile(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+)")


class DownloadError(SnipError):
    """A server did not deliver, however often it was asked."""

    exit_code = 4


class NotThereError(DownloadError):
    """The server has no such file (404 or 410)."""


@dataclass(frozen=True)
class Policy:
    """How downloads behave.

    Attributes
    ----------
    attempts
        Failures in a row, without one byte gained, after which a download gives up.
    backoff
        Seconds; the wait after failure n is random between 0 and backoff x 2^n.
    longest_wait
        Seconds that it waits at the most; where the server asks for more, it gives up.
    timeout
        Seconds without an answer or a byte that count as a failure.
    at_once
        Files that download at the same time.
    """

    attempts: int = 7
    backoff: float = 1.0
    longest_wait: float = 300.0
    timeout: float = 30.0
    at_once: int = 4


class AgainError(Exception):
    """A failure that may pass: try again, after `wait` seconds if the server named them."""

    def __init__(self, reason: str, wait: float | None = None, *, gained: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.gained = wait, gained


def hugging_face() -> str:
    """Base address of Hugging Face or of the mirror that `HF_ENDPOINT` names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def redacted(url: str) -> str:
    """A url fit to be shown: without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


class Session:
    """A pool of connections; share one over threads, close it by `with`.

    Attributes
    ----------
    stopping
        Once set, downloads under way in other threads end at their next block.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.stopping = threading.Event()
        # httpx logs whole addresses at INFO, and the query of a signed one is a secret.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(self.policy.timeout, pool=None),
            limits=httpx.Limits(max_connections=2 * self.policy.at_once),
            headers={"User-Agent": "snip_assets", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def retry(self, work: Callable[[], T], url: str) -> T:
        """Call `work` until it succeeds.

        Raises
        ------
        DownloadError
            After `policy.attempts` failures in a row without a byte gained.
        """
        failures = 0
        while True:
            try:
                return work()
            except AgainError as error:
                failures = 1 if error.gained else failures + 1
                reason, asked = str(error), error.wait
            except httpx.TransportError as error:
                failures, reason, asked = failures + 1, _plain(error), None
            if failures >= self.policy.attempts:
                raise DownloadError(
                    f"{redacted(url)}: {reason}; gave up after {failures} attempts. What has "
                    "arrived is kept: run the same command again to go on from there."
                )
            self.stopping.wait(self._wait(failures, asked, url))
            self.check()

    def check(self) -> None:
        """Raise DownloadError when somebody has asked to stop."""
        if self.stopping.is_set():
            raise DownloadError("stopped; the same command again goes on from here.")

    def _wait(self, failures: int, asked: float | None, url: str) -> float:
        longest = self.policy.longest_wait
        if asked is not None and asked > longest:
            raise DownloadError(
                f"{redacted(url)}: the server asks to wait {asked:.0f} s; run the same command "
                "again after that, it goes on from here."
            )
        chosen = random.uniform(0, min(longest, self.policy.backoff * 2**failures))  # jitter
        return chosen if asked is None else asked + min(chosen, 1.0)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """Open a response whose body is streamed; status 200, 206 or 416.

        Raises
        ------
        AgainError
            A status that may pass (429, 5xx and the like).
        NotThereError
            404 or 410.
        BadInputError
            Any other status, or an address that cannot be one.
        """
        try:
            with self.client.stream(
                "GET", url, headers={**_token(url), **(headers or {})}
            ) as reply:
                _judge(reply, url)
                yield reply
        except httpx.UnsupportedProtocol as error:
            raise BadInputError(
                f"{redacted(url)}: leads to an address that is not http(s); check the address."
            ) from error
        except httpx.TransportError:
            raise
        except (httpx.InvalidURL, httpx.RequestError) as error:
            raise BadInputError(f"{redacted(url)}: {_plain(error)}; check the address.") from error

    def tail(self, url: str, length: int) -> tuple[bytes, int]:
        """The last `length` bytes of a remote file, and its whole length, by a range request.

        Raises
        ------
        BadInputError
            The server does not answer range requests.
        """
        return self.retry(lambda: self._tail(url, length), url)

    def _tail(self, url: str, length: int) -> tuple[bytes, int]:
        with self.get(url, {"Range": f"bytes=-{length}"}) as reply:
            total = content_range(reply)
            if reply.status_code == 206 and total is not None:
                return reply.read(), total[2]
            declared = int(reply.headers.get("Content-Length", -1))
            if reply.status_code == 200 and 0 <= declared <= length:
                return reply.read(), declared
        raise BadInputError(
            f"{redacted(url)}: the server does not answer range requests, so the end of the file "
            "cannot be read without downloading all of it."
        )


def content_range(reply: httpx.Response) -> tuple[int, int, int] | None:
    """First byte, last byte and total length of a partial answer (-1, -1, total if refused)."""
    match = _TOTAL.fullmatch(reply.headers.get("Content-Range", "").strip())
    if match is None:
        return None
    return int(match[1] or -1), int(match[2] or -1), int(match[3])


def _token(url: str) -> dict[str, str]:
    token = os.environ.get("HF_TOKEN", "").strip()
    here, there = urlsplit(url), urlsplit(hugging_face())
    if token and (here.scheme, here.netloc) == (there.scheme, there.netloc):
        return {"Authorization": f"Bearer {token}"}
    return {}


def _judge(reply: httpx.Response, url: str) -> None:
    status = reply.status_code
    if status in (200, 206, 416):
        return
    where = redacted(url)
    if status in PASSING:
        raise AgainError(f"the server answers {status}", _retry_after(reply))
    if status in (404, 410):
        raise NotThereError(f"{where}: no such file there ({status}); check the address.")
    if status in (401, 403):
        raise BadInputError(
            f"{where}: access denied ({status}). If the files are gated, accept their terms and "
            "set HF_TOKEN; if they are no longer distributed, give the address of a mirror."
        )
    raise BadInputError(f"{where}: the server answers {status}; check the address.")


def _retry_after(reply: httpx.Response) -> float | None:
    value = reply.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _plain(error: Exception) -> str:
    # The text of a transport error may hold the address; its type says enough.
    words = {
        "ConnectError": "cannot connect",
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "no byte in time",
        "ReadError": "the connection was cut",
        "RemoteProtocolError": "the connection was cut",
    }
    return words.get(type(error).__name__, type(error).__name__)
