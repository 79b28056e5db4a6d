"""Source files in object stores: urls as paths, headers by range, a cache for what is mapped.

A url is a `UPath` wherever a local file is a `Path`; `as_path` makes either of a text. Parquet
files are read in place, by ranges. Features are memory-mapped, so each file is fetched whole, once,
into a folder of bounded size, from which those not used for longest go when room is needed.
"""

from __future__ import annotations

import datetime
import fcntl
import io
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from upath import UPath

from snip_assets.engine.errors import BadInputError, SnipError

from . import files
from .locations import local_path
from .locks import lock
from .npy_faults import undisturbed
from .remote import DownloadError, redacted

BLOCK = 1 << 23
# What stores call that which changes with a file, the surest first.
_STAMPS = (
    *("ETag", "etag", "md5Hash", "blob_id"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "created"),
)
HEADER = 4096
# What a copy in the cache is called; all else in its folder is not ours.
_COPY = re.compile(r"[0-9a-f]{32}-.+")
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class CacheFullError(SnipError):
    """All that lies in the cache is in use, or a file is larger than the cache."""

    exit_code = 4


@dataclass(frozen=True)
class Cache:
    """Copies of remote files.

    Attributes
    ----------
    folder
        Where they lie; processes and machines may share it.
    limit
        Bytes that they may take. (Downloads under way at the same time may pass it.)
    """

    folder: Path
    limit: int


_cache: Cache | None = None


def use(cache: Cache) -> None:
    """Set the cache of this process."""
    global _cache
    _cache = cache


def as_path(text: str | Path) -> Path:
    """A path of a text: for a url (`s3://`, `gs://`, `hf://`, `https://`) what behaves as one.

    Raises
    ------
    BadInputError
        No file system is known for this kind of url.
    """
    if "://" not in str(text) or isinstance(text, UPath):
        return home_expanded(text) if isinstance(text, str) else text
    if (local := local_path(str(text))) is not None:
        return local
    try:
        found: Any = UPath(str(text))
        assert found.fs is not None
    except Exception as error:
        # Some kinds connect at once, each with errors of its own.
        raise BadInputError(
            f"{redacted(str(text))}: this kind of url cannot be read here ({error}); for s3:// "
            "pip install 'snip_assets[s3]', for gs:// 'snip_assets[gs]', for hf:// "
            "'snip_assets[hf]', for https:// aiohttp."
        ) from error
    return found


def home_expanded(text: str) -> Path:
    """A local path; `~` is the user's home, also where no shell has said so."""
    path = Path(text)
    return path.expanduser() if path.parts[:1] == ("~",) else path


def absolute(path: Path) -> Path:
    """A path that means the same in any working folder; links in it stay, as they may be moved."""
    return path if is_remote(path) else path.absolute()


def is_remote(path: Path) -> bool:
    """Whether a path is a url."""
    return isinstance(path, UPath)


@contextmanager
def reading(path: Any) -> Iterator[None]:
    """Name the file, and the cure where there is one, in whatever a store fails with."""
    try:
        yield
    except SnipError:
        raise
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file.") from error
    except PermissionError as error:
        raise BadInputError(f"{path}: access denied; check the credentials ({error}).") from error
    except Exception as error:
        # Each store has errors of its own: of the network, of credentials, of the service.
        raise DownloadError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); check the address and the "
            "credentials, or wait until the store answers, and run again."
        ) from error


def info_of(path: Any) -> dict[str, Any]:
    """What a store tells of a file now.

    Raises
    ------
    BadInputError
        There is no such file, or no access to it.
    DownloadError
        The store cannot be reached.
    """
    with reading(path):
        # Not every store knows `refresh=True`.
        path.fs.invalidate_cache()
        info = path.fs.info(path.path)
    if info.get("size") is None:
        raise BadInputError(
            f"{path}: the server does not say how long the file is; copy it to a local folder, or "
            "to a server that does (and does not compress)."
        )
    return info


def state_of(info: dict[str, Any]) -> str:
    """Changes when a file does, of which a store tells this."""
    stamp = next((_stamp(info[name]) for name in _STAMPS if info.get(name)), "")
    return f"{info['size']}-{xxhash.xxh3_64_intdigest(stamp.encode())}"


def _stamp(value: Any) -> str:
    """A time as seconds: a store may give it in one form in a listing, in another for a file."""
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def remote_state(path: Path) -> str:
    """Changes when the remote file does; read without its contents."""
    return state_of(info_of(path))


def _listed(folder: Any) -> dict[str, dict[str, Any]]:
    """Name -> what the store tells of each file in a remote folder, listed anew."""
    with reading(folder):
        folder.fs.invalidate_cache()
        found = folder.fs.ls(folder.path, detail=True)
    files_only = [info for info in found if info["type"] == "file"]
    return {info["name"].rstrip("/").rsplit("/", 1)[-1]: info for info in files_only}


def remote_names(folder: Any) -> list[str]:
    """Names of the files in a remote folder, listed anew."""
    return list(_listed(folder))


def remote_states(folder: Any, known: Callable[[str], bool]) -> list[tuple[str, str | None]]:
    """Name and state of each file in a remote folder, listed anew.

    A web server lists names alone. There each file is asked for by itself, except those that are
    `known`, whose state is None: thousands of requests at each look would be too many.
    """
    found: list[tuple[str, str | None]] = []
    for name, info in _listed(folder).items():
        if info.get("size") is not None:
            found.append((name, state_of(info)))
        else:
            found.append((name, None if known(name) else remote_state(folder / name)))
    return found


def exists(path: Path) -> bool:
    """Whether there is such a file, here or remote.

    Raises
    ------
    DownloadError
        The store cannot be reached.
    """
    if not is_remote(path):
        return path.exists()
    remote: Any = path
    with reading(path):
        remote.fs.invalidate_cache()
        return remote.fs.exists(remote.path)


class _Handle:
    """A remote file whose store may fail at each read: an error of ours then."""

    def __init__(self, path: Any, handle: Any) -> None:
        self._path, self._handle = path, handle

    def read(self, *size: int) -> bytes:
        """Some bytes from where it stands, all without a size."""
        with reading(self._path):
            return self._handle.read(*size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def open_file(path: Any) -> Any:
    """A handle that reads by ranges."""
    with reading(path):
        return _Handle(path, path.fs.open(path.path, "rb"))


def npy_header(path: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an .npy file from its first bytes, held against its size.

    Raises
    ------
    BadInputError
        No .npy file, one of Python objects, or one whose size is not what its header says.
    """
    size = info_of(path)["size"]
    with reading(path):
        first = path.fs.cat_file(path.path, start=0, end=min(size, HEADER))
    try:
        (shape, _, dtype), begin = undisturbed(lambda: _header(first))
    except Exception as error:
        raise BadInputError(f"{path}: not an .npy file, or damaged ({error}).") from error
    if dtype.hasobject:
        raise BadInputError(f"{path}: it holds Python objects, never loaded; save it as numbers.")
    expected = begin + int(np.prod(shape)) * dtype.itemsize
    if size != expected:
        raise BadInputError(f"{path}: {size} bytes, but its header says {expected}; copy it again.")
    return shape, dtype


def _header(first: bytes) -> tuple[tuple[tuple[int, ...], bool, np.dtype], int]:
    """What the first bytes of an .npy file tell, and where its rows begin."""
    head = io.BytesIO(first)
    return _READERS[np.lib.format.read_magic(head)](head), head.tell()


def open_npy(path: Any) -> np.ndarray:
    """Memory map of a remote .npy file, through the cache; kept there while the map is open.

    Raises
    ------
    BadInputError
        The file is missing or damaged.
    CacheFullError
        There is no room for it.
    """
    if _cache is None:
        raise RuntimeError("no cache: make a Run first")
    local, handle = _held(_cache, path)
    try:
        array: Any = files.open_npy(local)
    except BadInputError as error:
        os.close(handle)
        said = str(error).replace(str(local), str(path))
        raise BadInputError(f"{said} (The copy that was read is {local}.)") from error
    weakref.finalize(array._mmap, os.close, handle)
    return array


def _held(cache: Cache, path: Any) -> tuple[Path, int]:
    """The copy of a file, fetched if need be, and a handle whose lock keeps it from eviction."""
    info = info_of(path)
    local = cache.folder / f"{files.digest_of([str(path), state_of(info)])}-{path.name}"
    while True:
        with lock(local):
            # A copy of another length was cut by other hands: it is fetched again.
            if not local.exists() or local.stat().st_size != info["size"]:
                local.unlink(missing_ok=True)
                _make_room(cache, info["size"], path)
                _fetch(path, info["size"], local)
            handle = os.open(local, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
            # It may have been evicted just before we locked it.
            if local.exists() and os.path.samestat(os.fstat(handle), local.stat()):
                os.utime(local)
                return local, handle
            os.close(handle)


def _fetch(path: Any, size: int, local: Path) -> None:
    with files.atomic_path(local) as temporary, open(temporary, "wb") as copy:
        with reading(path), path.fs.open(path.path, "rb", block_size=BLOCK) as remote:
            while block := remote.read(BLOCK):
                copy.write(block)
        if copy.tell() != size:
            raise DownloadError(f"{path}: {copy.tell()} bytes came of {size}; run again.")


def _make_room(cache: Cache, size: int, path: Any) -> None:
    with lock(cache.folder / "room"):
        found = [p for p in cache.folder.iterdir() if _COPY.fullmatch(p.name) and p.is_file()]
        oldest = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in found)
        total = sum(bytes_ for _, bytes_, _ in oldest)
        # For what can never fit, none need go.
        for _, bytes_, copy in oldest if size <= cache.limit else ():
            if total + size <= cache.limit:
                return
            total -= bytes_ if _evicted(copy) else 0
    if total + size > cache.limit:
        raise CacheFullError(
            f"{path}: {size:,} bytes do not fit into the cache {cache.folder} ({cache.limit:,} "
            f"bytes, {total:,} of them in use); raise cache_gb. Every thread needs two files."
        )


def _evicted(copy: Path) -> bool:
    handle = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
