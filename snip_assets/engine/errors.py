"""What can go wrong for a user, each with its cure."""

import errno
import re
import socket
from collections.abc import Iterator

_USER = re.compile(r"(\w://)[^/\s:'\"]*:[^/\s'\"]*@|(https?://)[^/\s'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?#'\",]+)[?#][^\s'\",]*?(?=[:;.)\]]*(?:[\s'\",`]|$))")


def without_secrets(text: str) -> str:
    """A text whose urls have no password, and with http(s) no user, query or fragment."""
    return _QUERY.sub(r"\1", _USER.sub(lambda m: m[1] or m[2], text))


class SnipError(Exception):
    """A condition that the user can mend: the message names the file and says what to do.

    The command line prints it without a stack trace and exits with `exit_code`. What is secret in
    the urls that a message names is left out.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(str(message)))


class BadInputError(SnipError):
    """An input file is missing, damaged or does not fit the others."""

    exit_code = 2


class BadSettingsError(BadInputError):
    """Nothing can be made with these settings, whatever the data."""


class StaleOutputError(SnipError):
    """A stored output does not match its manifest, or belongs to other inputs."""

    exit_code = 3


def made_again(what: str, did: str) -> BadInputError:
    """What another run made again, and what this one did with it meanwhile."""
    return BadInputError(
        f"{what} was made again by another run, with other settings, while this one {did} it; run "
        "again when the other has ended."
    )


class DiskFullError(SnipError):
    """No room for an output: the disk, a quota or a limit on the size of files."""

    exit_code = 4


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what others it came of."""
    cause: BaseException | None = error
    seen: set[int] = set()
    # Errors that cross threads and event loops may come to name each other.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


# Of a disk that answers too late, and of a network.
_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE, errno.ECONNRESET),
    *(errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
    *(errno.ENETDOWN, errno.EHOSTDOWN, errno.ENOTCONN),
    # As s3fs has 503 and 500.
    *(errno.EBUSY, errno.EREMOTEIO),
}


def may_pass(error: BaseException) -> bool:
    """Whether an error came of a fault of a disk or network that may be gone the next time."""
    for cause in causes(error):
        if isinstance(cause, (ConnectionError, TimeoutError)):
            return True
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        if cause.__suppress_context__ and cause.__cause__ is None:
            break
    return False
