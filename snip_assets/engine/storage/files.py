"""Files that are whole or absent: atomic writes, manifests with checksums.

Every output is written to a temporary name beside its place and renamed. Next to it lies
`{name}.manifest.json` with the checksum of each file, the versions of what it was made from
and a few facts, so that a second run skips what is valid and damage is noticed before use.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from snip_assets.engine.errors import BadInputError, DiskFullError, SnipError, StaleOutputError

from . import comparisons, flushing, working_copies
from .folders import remove, replace_folder, temporary_of
from .npy_faults import npy_reason, undisturbed
from .npy_maps import mapped
from .resident import watch

BLOCK = 1 << 22
MANIFEST = ".manifest.json"
CODE_VERSION = "6"
CheckLevel = Literal["size", "recent", "full"]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What libraries say that do not pass the number of the error on.
_FULL_TEXT = ("No space left on device", "File too large", "quota exceeded", "disk is full")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, else remove it.

    Works for a file and for a folder (a folder replaces the former one).

    Raises
    ------
    DiskFullError
        There is no room; what was at `path` before is untouched.
    """
    temporary = temporary_of(path)
    flushes = flushing.begin(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            # Not every library that writes says it as an error that names the place.
            raise PermissionError(errno.EACCES, "not writable", str(path.parent))
        yield temporary
        if temporary.is_dir():
            flushes.wait(temporary)
            replace_folder(temporary, path)
        else:
            flushing.flush(temporary, path.parent)
            temporary.replace(path)
        working_copies.written(path)
    except DiskFullError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFullError(
                f"{path}: no space left to write it ({error}). Free space (or raise the quota or "
                "file size limit) and run again; what was there before is untouched."
            ) from error
        raise
    finally:
        flushing.end(temporary)
        remove(temporary)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room."""
    return getattr(error, "errno", None) in _FULL or any(t in str(error) for t in _FULL_TEXT)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array atomically."""
    with atomic_path(path) as temporary:
        save_npy(temporary, array)


def save_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as `np.save` does, but raise where the disk is full: that drops the end."""
    whole = np.ascontiguousarray(array).reshape(array.shape)
    header = {"descr": whole.dtype.str, "fortran_order": False, "shape": whole.shape}
    with open(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        if whole.size:
            handle.write(whole.data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one table atomically (zstd)."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def open_npy(path: Path) -> np.ndarray:
    """Open an .npy file, memory-mapped; never unpickle.

    Raises
    ------
    BadInputError
        The file is missing, truncated, not npy, or holds Python objects.
    """
    if not isinstance(path, Path):
        # A url; imported here since the cache writes its files with what is in this module.
        from .remote_files import open_npy as open_remote

        return open_remote(path)
    try:
        array = working_copies.opened(path, lambda file: undisturbed(lambda: mapped(file)))
    except SnipError:
        raise
    except Exception as error:
        # A damaged header makes numpy raise almost anything, tokenize.TokenError among others.
        raise BadInputError(f"{path}: {npy_reason(path, error)}") from error
    if not isinstance(array, np.ndarray):
        raise BadInputError(f"{path}: an archive (.npz), not a single array; save it as .npy.")
    watch(array)
    return array


class NpyWriter:
    """Write an .npy of known shape block by block, atomically, in bounded memory.

    Use as a context manager; `append` rows in order.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.rows = 0

    def __enter__(self) -> NpyWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._handle = stack.enter_context(open(temporary, "wb"))
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(self._handle, header)
            stack.push(self._require_all)
            self._stack = stack.pop_all()
        return self

    def append(self, block: np.ndarray) -> None:
        """Append rows."""
        self._handle.write(np.ascontiguousarray(block, self.dtype).data)
        self.rows += len(block)

    def _require_all(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.rows != self.shape[0]:
            raise RuntimeError(f"{self.path}: wrote {self.rows} rows of {self.shape[0]}")

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)


def checksum(path: Path) -> str:
    """xxh3-128 of a file, read by blocks."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Stable digest of anything JSON can hold."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, and its digest."""
    plain = json.loads(json.dumps(value))
    return {**plain, "digest": digest_of(plain)}


@dataclass(frozen=True)
class Manifest:
    """What lies beside an output.

    Attributes
    ----------
    files
        name -> {"bytes": int, "xxh3": hex}; the names are relative to the output's folder.
    inputs
        name of an upstream -> version of it that was read.
    facts
        rows, dimension, settings: whatever the reader wants to know without opening the files.
    """

    files: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """Digest of the contents: equal bytes, equal version."""
        return digest_of({name: entry["xxh3"] for name, entry in self.files.items()})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry["bytes"] for entry in self.files.values())


@lru_cache(1 << 16)
def manifest_path(output: Path) -> Path:
    """Where the manifest of an output lies."""
    return output.parent / f"{output.name}{MANIFEST}"


def _members(output: Path) -> list[Path]:
    if output.is_dir():
        return sorted(p for p in output.rglob("*") if p.is_file())
    return [output]


def seal(output: Path, inputs: Mapping[str, str], **facts: Any) -> Manifest:
    """Write the manifest of a finished output (a file or a folder)."""
    members = _members(output)
    state = comparisons.state(members)
    files = {
        str(member.relative_to(output.parent)): {
            "bytes": member.stat().st_size,
            "xxh3": checksum(member),
        }
        for member in members
    }
    manifest = Manifest(files, {**inputs, "code": CODE_VERSION}, facts)
    write_json(manifest_path(output), with_digest(asdict(manifest)))
    comparisons.remember(output, manifest.version, state)
    return manifest


def seal_parts(
    output: Path, inputs: Mapping[str, str], parts: list[Path], **facts: Any
) -> Manifest:
    """Write the manifest of a folder from those of its sealed parts, without reading them again."""
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        manifest = read_manifest(part)
        if manifest is None:
            raise StaleOutputError(f"{part}: unfinished; delete it and run again.")
        for name, entry in manifest.files.items():
            files[str((part.parent / name).relative_to(output.parent))] = entry
    whole = Manifest(files, {**inputs, "code": CODE_VERSION}, facts)
    write_json(manifest_path(output), with_digest(asdict(whole)))
    return whole


def read_manifest(output: Path) -> Manifest | None:
    """The manifest of an output, None if there is none.

    Raises
    ------
    StaleOutputError
        It is damaged. (An output must not be passed over as if it had never been made.)
    """
    path = manifest_path(output)
    try:
        status = path.stat()
        return _parsed(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleOutputError(
            f"{path}: damaged ({error}). Delete it and materialise {output.name} again."
        ) from error


@lru_cache(1 << 13)
def _parsed(path: Path, *state: int) -> Manifest:
    """A manifest, read once as long as its file stays the same: a run asks for most many times."""
    value = json.loads(path.read_text())
    if value.pop("digest") != digest_of(value):
        raise ValueError("its digest differs")
    manifest = Manifest(dict(value["files"]), dict(value["inputs"]), dict(value["facts"]))
    # Fails here, where it is told as damage, on an entry without its checksum or size.
    _ = manifest.version, manifest.bytes
    return manifest


def current(output: Path, inputs: Mapping[str, str]) -> Manifest | None:
    """The manifest if the output is there, whole, and made from exactly these inputs."""
    try:
        manifest = read_manifest(output)
    except StaleOutputError:
        return None
    if manifest is None or manifest.inputs != {**inputs, "code": CODE_VERSION}:
        return None
    return manifest if not damage(output, manifest, "size") else None


def damage(output: Path, manifest: Manifest, level: CheckLevel = "full") -> list[str]:
    """What is wrong with the files of an output, a line each; empty when they are whole.

    Parameters
    ----------
    level
        "size" compares sizes; "recent" also checksums, unless these very files held before (see
        `comparisons`); "full" checksums in any case. Where a file is newer than its manifest, as a
        killed run may leave it, "size" is taken for "recent". In a working copy, "full" alone has
        files come that are not here; what comes is compared then.
    """
    # Room may be made in a working copy between two looks for a file: what is missing then is
    # looked for once more.
    with suppress(FileNotFoundError):
        found = _damage(output, manifest, level)
        if not found or working_copies.of(output) is None:
            return found
    return _damage(output, manifest, level)


def _damage(output: Path, manifest: Manifest, level: CheckLevel) -> list[str]:
    files = working_copies.here_or_fetched(output, manifest.files, fetch=level == "full")
    entries, found = {output.parent / name: entry for name, entry in files.items()}, []
    for member, entry in entries.items():
        if not member.is_file():
            found.append(f"{member}: missing")
        elif (size := member.stat().st_size) != entry["bytes"]:
            found.append(f"{member}: {size} bytes, not {entry['bytes']}")
    if found or (level == "size" and not comparisons.newer(entries, manifest_path(output))):
        return found
    level = "recent" if level == "size" else level
    state = comparisons.state(entries)
    if level == "recent" and comparisons.held(output, manifest.version, state, elsewhere=True):
        return []
    if level == "recent" and (parts := _parts(output, manifest)):
        return [line for part, own in parts.items() for line in damage(part, own, level)]
    digests = {member: working_copies.opened(member, checksum) for member in entries}
    found = [f"{m}: checksum differs" for m, e in entries.items() if digests[m] != e["xxh3"]]
    if not found:
        comparisons.remember(output, manifest.version, state)
    return found


def _parts(output: Path, manifest: Manifest) -> dict[Path, Manifest]:
    """The parts that an output was sealed by, with their manifests; none unless these tell all."""
    parts: dict[Path, Manifest] = {}
    for inside in {Path(name).parts[1] for name in manifest.files if "/" in name}:
        # A part whose manifest is damaged counts as none: then every file is read.
        with suppress(StaleOutputError):
            if (own := read_manifest(output / inside)) is not None:
                parts[output / inside] = own
    told = {f"{output.name}/{name}": e for own in parts.values() for name, e in own.files.items()}
    return parts if told == manifest.files else {}


def _held(output: Path, manifest: Manifest) -> bool:
    """Whether this process has compared these very files before."""
    with suppress(OSError):
        state = comparisons.state(output.parent / name for name in manifest.files)
        return comparisons.held(output, manifest.version, state, elsewhere=False)
    return False


def require(output: Path, what: str, level: CheckLevel = "size") -> Manifest:
    """The manifest of an output that must be there and whole.

    Parameters
    ----------
    level
        As in `damage`; "full" reads every byte once in a process.

    Raises
    ------
    StaleOutputError
        It is missing or damaged; the message says what to run.
    """
    manifest = read_manifest(output)
    if manifest is None:
        cure = f"materialise {what} first (`snip dedup` makes all)."
        name = working_copies.named(output)
        raise StaleOutputError(f"{name}: not made yet (or unfinished); {cure}")
    if level == "full" and _held(output, manifest):
        return manifest
    if found := damage(output, manifest, level):
        raise StaleOutputError(
            f"{what} is damaged: {'; '.join(found)}. Delete "
            f"{working_copies.named(manifest_path(output))} and materialise {what} again."
        )
    return manifest
