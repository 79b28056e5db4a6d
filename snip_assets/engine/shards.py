"""A sharded data set as one array: which shards there are, their ordinals and row offsets.

Row id = `row_offsets[ordinal of its shard] + row in shard`. Shards get their ordinal when they
are first registered and keep it, so row ids never change when data arrives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import apart
from .errors import BadInputError, StaleOutputError
from .features import Features
from .layout import Layout
from .sources import FEATURES_PATTERN, METADATA_PATTERN, Source, discover
from .storage.files import (
    digest_of,
    manifest_path,
    open_npy,
    read_manifest,
    with_digest,
    write_json,
    write_npy,
)
from .storage.locks import lock
from .storage.parquet_source import parquet_rows
from .storage.remote_files import absolute, as_path, is_remote, npy_header
from .storage.row_file import file_state

_MOVE = "`snip shards move --features ... --metadata ...` says so to this folder"
# Numbers of a raw feature, and their dtype.
Kind = tuple[int, str]


@dataclass(frozen=True)
class Shard:
    """One registered shard.

    Attributes
    ----------
    key
        What the names of its files share.
    ordinal
        Place in the order of registration.
    start
        Row id of its first row.
    rows, dim, dtype
        As in the header of its features.
    features, metadata
        Its files.
    """

    key: str
    ordinal: int
    start: int
    rows: int
    dim: int
    dtype: str
    features: Path
    metadata: Path

    @property
    def stop(self) -> int:
        """Row id after its last row."""
        return self.start + self.rows

    @property
    def kind(self) -> Kind:
        """What it must have in common with all others."""
        return self.dim, self.dtype


@dataclass(frozen=True)
class Registry:
    """All registered shards, by ordinal."""

    source: Source
    shards: tuple[Shard, ...]

    @property
    def offsets(self) -> np.ndarray:
        """int64[S + 1], leading 0."""
        return np.cumsum([0, *(s.rows for s in self.shards)], dtype=np.int64)

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return self.shards[-1].stop if self.shards else 0

    @property
    def keys(self) -> list[str]:
        """Keys by ordinal."""
        return [s.key for s in self.shards]

    @property
    def dim(self) -> int:
        """Numbers of a raw feature."""
        return self.shards[0].dim

    def __getitem__(self, key: str) -> Shard:
        for shard in self.shards:
            if shard.key == key:
                return shard
        raise _unregistered(key)

    def only(self, keys: list[str]) -> list[Shard]:
        """The shards with these keys, by ordinal."""
        wanted = set(keys)
        found = [s for s in self.shards if s.key in wanted]
        for key in wanted.difference(s.key for s in found):
            raise _unregistered(key)
        return found


def _unregistered(key: str) -> BadInputError:
    return BadInputError(
        f"shard {key!r} is not registered; run `snip shards sync`. If it has no files, its key was "
        "mistyped: delete the partition in Dagster, where it was added."
    )


def inspect(source: Source, key: str) -> Shard:
    """Read the headers of a shard's files and hold them against each other.

    Raises
    ------
    BadInputError
        A file is unreadable, has the wrong form, or the row counts differ.
    """
    features = source.features / FEATURES_PATTERN.format(key=key)
    metadata = source.metadata / METADATA_PATTERN.format(key=key)
    shape, dtype = npy_header(features) if is_remote(features) else _header(features)
    if len(shape) != 2 or shape[1] == 0:
        raise BadInputError(f"{features}: shape {shape}; expected rows x dimension, two axes.")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8) or not dtype.isnative:
        raise BadInputError(
            f"{features}: dtype {dtype}; expected float16, float32 or float64, bytes in the order "
            "of this machine: save it again with `.astype`."
        )
    rows = parquet_rows(metadata)
    if rows != shape[0]:
        raise BadInputError(
            f"shard {key}: {features} has {shape[0]} rows, {metadata} has {rows}; row i of one "
            "must be row i of the other: write both again from the same run."
        )
    return Shard(key, -1, -1, int(shape[0]), int(shape[1]), dtype.str, features, metadata)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    array = open_npy(path)
    return array.shape, array.dtype


def load(layout: Layout) -> Registry:
    """The registry of an output folder."""
    try:
        status = layout.registry.stat()
    except FileNotFoundError as error:
        if manifest_path(layout.duplicate_groups).exists():
            raise _recut(layout) from error
        raise StaleOutputError(
            f"{layout}: no shards registered here; run `snip shards sync`."
        ) from error
    return _load(layout, (status.st_ino, status.st_mtime_ns, status.st_size))


def _recut(layout: Layout) -> StaleOutputError:
    return StaleOutputError(
        f"{layout}: made by `snip recut`; give the output folder of the run itself."
    )


@lru_cache(maxsize=8)
def _load(layout: Layout, state: tuple[int, int, int]) -> Registry:
    """Read once for each state of the file: a sensor asks for it often."""
    try:
        value = json.loads(layout.registry.read_text())
    except ValueError as error:
        raise _damaged(layout.registry) from error
    # Row ids of everything hang on it.
    if not isinstance(value, dict) or value.pop("digest", None) != digest_of(value):
        raise _damaged(layout.registry)
    source = Source(as_path(value["source"]["features"]), as_path(value["source"]["metadata"]))
    shards, start = [], 0
    for ordinal, entry in enumerate(value["shards"]):
        key = entry["key"]
        shards.append(
            Shard(
                key=key,
                ordinal=ordinal,
                start=start,
                rows=entry["rows"],
                dim=entry["dim"],
                dtype=entry["dtype"],
                features=source.features / FEATURES_PATTERN.format(key=key),
                metadata=source.metadata / METADATA_PATTERN.format(key=key),
            )
        )
        start += entry["rows"]
    return Registry(source, tuple(shards))


def _damaged(path: Path) -> StaleOutputError:
    return StaleOutputError(
        f"{path}: damaged (its digest differs). Put it back from a backup; or restore the same "
        "order of shards by registering them again in a new output folder."
    )


def register(layout: Layout, source: Source, keys: list[str] | None = None) -> list[Shard]:
    """Append shards to the registry; those already there keep their place.

    Parameters
    ----------
    keys
        Which to register, in this order; default: all that `discover` finds, as it sorts them.

    Returns
    -------
    The new shards.

    Raises
    ------
    BadInputError
        A shard does not fit the others, or a registered one has changed.
    StaleOutputError
        The output folder belongs to another data set.
    """
    source = Source(absolute(source.features), absolute(source.metadata))
    apart.from_sources(layout.root, source)
    with lock(layout.registry, layout.row_offsets):
        return _register(layout, source, keys)


def _register(layout: Layout, source: Source, keys: list[str] | None) -> list[Shard]:
    known: list[Shard] = []
    if layout.registry.exists():
        require_source(layout, source)
        registry = load(layout)
        known, source = list(registry.shards), registry.source
    elif (groups := read_manifest(layout.duplicate_groups)) and "run" in groups.facts:
        raise _recut(layout)
    names = {s.key for s in known}
    found = discover(source, names) if keys is None else list(dict.fromkeys(keys))
    if gone := sorted(names - set(found)) if keys is None else []:
        raise BadInputError(
            f"shard {gone[0]}: registered, but its files are gone from {source.features}; put "
            f"them back under their names ({len(gone)} such shards); `snip shards withdraw` "
            "forgets the last ones."
        )
    if keys is None:
        for shard in known:
            changed(shard)
    new: list[Shard] = []
    for key in found:
        if key in names:
            continue
        shard, before = inspect(source, key), known + new
        if reason := unlike(shard, before[0].kind if before else None):
            raise BadInputError(reason)
        start = before[-1].stop if before else 0
        new.append(replace(shard, ordinal=len(before), start=start))
    registry = Registry(source, tuple(known + new))
    if new:
        save(layout, registry)
    elif known and not _same_offsets(layout, registry):
        write_npy(layout.row_offsets, registry.offsets)
    return new


def require_source(layout: Layout, source: Source, cure: str = "") -> None:
    """Raise StaleOutputError if an output folder belongs to other folders than these.

    Parameters
    ----------
    cure
        What to do instead of choosing another output folder.
    """
    own = load(layout).source if layout.registry.exists() else source
    if not _same_place(own, source):
        cure = cure or (
            f"choose another output folder for {source.features}. If it was moved there, {_MOVE}."
        )
        raise StaleOutputError(f"{layout} belongs to another data set ({own.features}); {cure}")


def _same_place(one: Source, other: Source) -> bool:
    """Whether two names are of the same folders."""
    pairs = ((one.features, other.features), (one.metadata, other.metadata))
    return all(apart.place(a) == apart.place(b) for a, b in pairs)


def _same_offsets(layout: Layout, registry: Registry) -> bool:
    try:
        return np.array_equal(open_npy(layout.row_offsets), registry.offsets)
    except BadInputError:
        return False


def unlike(shard: Shard, kind: Kind | None) -> str:
    """Why a shard does not fit among those of a kind; empty if it does, or there are none."""
    if kind is None or shard.kind == kind:
        return ""
    if shard.dim != kind[0]:
        return (
            f"shard {shard.key}: {shard.features} has {shard.dim} numbers a row, the other shards "
            f"{kind[0]}; features of one model only."
        )
    own, other = (np.dtype(dtype).name for dtype in (shard.dtype, kind[1]))
    return (
        f"shard {shard.key}: {shard.features} is {own}, the other shards {other}; save it again "
        f"with `.astype(np.{other})`."
    )


def changed(shard: Shard) -> None:
    """Raise BadInputError if the headers of a registered shard are not what they were."""
    now = inspect(Source(shard.features.parent, shard.metadata.parent), shard.key)
    if (now.rows, now.dim, now.dtype) != (shard.rows, shard.dim, shard.dtype):
        raise BadInputError(
            f"shard {shard.key}: {shard.features} changed after registration ({shard.rows} x "
            f"{shard.dim} {shard.dtype} became {now.rows} x {now.dim} {now.dtype}); put the "
            "former file back and give the new data a new key; or, if it was registered last, "
            "`snip shards withdraw` it."
        )


def save(layout: Layout, registry: Registry) -> None:
    """Write the registry, whose lock is held."""
    write_npy(layout.row_offsets, registry.offsets)
    value = {
        "source": {
            "features": str(registry.source.features),
            "metadata": str(registry.source.metadata),
        },
        "shards": [
            {"key": s.key, "rows": s.rows, "dim": s.dim, "dtype": s.dtype} for s in registry.shards
        ],
    }
    write_json(layout.registry, with_digest(value))


# Paths and states of the files of the raw features asked for last, and these.
_last: tuple[list[Path], list[tuple[int, ...]], Features] | None = None


def raw_features(registry: Registry) -> Features:
    """The raw features of a registry; as long as no file changes none is opened again."""
    global _last
    paths = [s.features for s in registry.shards]
    if any(map(is_remote, paths)):
        return Features(paths, registry.offsets)
    try:
        states = [file_state(path.stat()) for path in paths]
    except OSError:
        # Who reads it says what is wrong.
        return Features(paths, registry.offsets)
    known = _last
    if known is not None and known[:2] == (paths, states) and known[2].holds(states):
        return known[2]
    found = Features(paths, registry.offsets)
    _last = paths, states, found
    return found


def snip_features(layout: Layout, registry: Registry) -> Features:
    """The SNIP features of a registry (all must be materialised when they are read)."""
    return Features([layout.snip_features(s.key) for s in registry.shards], registry.offsets)
