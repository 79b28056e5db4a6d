"""What a user holds of a data set: metadata and features of all shards or of some, by row id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import row_offsets
from .apply_bitmap import number_of, require_rows
from .errors import BadInputError
from .features import Features, normalised, opened_alike
from .metadata import Metadata
from .shards import FEATURES_PATTERN, METADATA_PATTERN, Registry
from .storage.files import open_npy
from .storage.parquet_source import parquet_rows
from .storage.remote_files import exists, is_remote

_NOWHERE = Path()


@dataclass(frozen=True)
class Holdings:
    """Files of a data set by shard ordinal; None where a shard's file is not at hand.

    Attributes
    ----------
    offsets
        int64[S + 1]: row ids at which the shards start.
    metadata, features
        A Parquet file and an .npy a shard.
    keys
        Names of the shards.
    """

    offsets: np.ndarray
    metadata: list[Path | None]
    features: list[Path | None]
    keys: list[str]

    @classmethod
    def of_registry(cls, registry: Registry) -> Holdings:
        """All shards of a registry."""
        found = registry.shards
        return cls(
            registry.offsets,
            [s.metadata if exists(s.metadata) else None for s in found],
            [s.features if exists(s.features) else None for s in found],
            registry.keys,
        )

    @classmethod
    def of_folders(
        cls, metadata: Path | None, features: Path | None, offsets: Path | None = None
    ) -> Holdings:
        """Files in folders, numbered by shard; named by key where a registry lies beside `offsets`.

        Without `offsets` the folders must hold all shards, from number 0 on.

        Raises
        ------
        BadInputError
            A number is missing and there are no offsets, a file has other rows than they say, or
            the features are none or not all alike.
        """
        bounds = None if offsets is None else row_offsets.load(offsets)
        keys = None if offsets is None else row_offsets.keys_beside(offsets)
        if bounds is not None and keys is not None and len(keys) == len(bounds) - 1:
            # The number of a shard is not its place: that is the order of registration.
            texts = _named(metadata, METADATA_PATTERN, ".parquet", keys)
            vectors = _named(features, FEATURES_PATTERN, ".npy", keys)
        else:
            texts, vectors = _numbered(metadata, ".parquet"), _numbered(features, ".npy")
            if bounds is None:
                bounds = _count(texts or vectors, metadata or features)
            keys = [f"{n:04d}" for n in range(len(bounds) - 1)]
        shards = range(len(keys))
        found = cls(bounds, [texts.get(n) for n in shards], [vectors.get(n) for n in shards], keys)
        for n in shards:
            for path in (found.metadata[n], found.features[n]):
                if path is not None:
                    require_rows(path, _rows(path), bounds, n)
        opened_alike([path for path in found.features if path is not None])
        return found

    def files(self) -> list[Path]:
        """Files on this machine that are at hand."""
        some = (*self.metadata, *self.features)
        return [path for path in some if path is not None and not is_remote(path)]

    @property
    def rows(self) -> int:
        """Rows of the whole data set."""
        return int(self.offsets[-1])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard ordinal and row in shard of row ids; -1, -1 where a row id is none."""
        rows = np.asarray(rows, np.int64)
        inside = (rows >= 0) & (rows < self.rows)
        ordinal = np.searchsorted(self.offsets, rows, "right") - 1
        ordinal[~inside] = -1
        return ordinal, np.where(inside, rows - self.offsets[ordinal], -1)

    def has(self, paths: list[Path | None], rows: np.ndarray) -> np.ndarray:
        """bool[n]: the shard of the row is at hand in `paths` (`metadata` or `features`)."""
        here = np.array([path is not None for path in paths] + [False])
        return here[self.locate(rows)[0]]

    def text(self, rows: np.ndarray, names: Sequence[str]) -> list[str | None]:
        """A text column of the metadata by row id, in any order; None where not at hand."""
        rows = np.asarray(rows, np.int64)
        wanted = np.unique(rows[self.has(self.metadata, rows)])
        paths = [path or _NOWHERE for path in self.metadata]
        values = Metadata(self.keys, paths, self.offsets).take(wanted, names).to_pylist()
        by_row = dict(zip(wanted.tolist(), values, strict=True))
        return [by_row.get(row) for row in rows.tolist()]

    def raw(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw features by row id.

        Returns
        -------
        bool[n] where they are at hand, and float32[hits, dim] of those rows, L2-normalised.
        """
        rows = np.asarray(rows, np.int64)
        have = self.has(self.features, rows)
        if not have.any():
            return have, np.empty((0, 0), np.float32)
        with np.errstate(invalid="ignore"):  # of infinity comes NaN, which is near nothing
            return have, normalised(self._opened.take(rows[have]))

    @cached_property
    def _opened(self) -> Features:
        return Features([path or _NOWHERE for path in self.features], self.offsets)


def _named(folder: Path | None, pattern: str, suffix: str, keys: list[str]) -> dict[int, Path]:
    if folder is None:
        return {}
    paths = {n: folder / pattern.format(key=key) for n, key in enumerate(keys)}
    found = {n: path for n, path in paths.items() if path.exists()}
    if not found and keys == sorted(keys):
        # Files of other names, in the order of the keys.
        return _numbered(folder, suffix)
    if not found:
        raise BadInputError(f"{folder}: no file of a registered shard, such as {paths[0].name}.")
    return found


def _numbered(folder: Path | None, suffix: str) -> dict[int, Path]:
    if folder is None:
        return {}
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder.")
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        number = number_of(path)
        if number is not None and path.name[0] != ".":
            if number in found:
                raise BadInputError(
                    f"{folder}: {path.name} and {found[number].name} share a number."
                )
            found[number] = path
    if not found:
        raise BadInputError(f"{folder}: no numbered *{suffix} file in this folder.")
    return found


def _rows(path: Path) -> int:
    return parquet_rows(path) if path.suffix == ".parquet" else len(open_npy(path))


def _count(files: dict[int, Path], folder: Path | None) -> np.ndarray:
    if not files:
        raise BadInputError("give the metadata or the features of the data set, or its offsets.")
    if gaps := sorted(set(range(max(files) + 1)) - set(files)):
        raise BadInputError(
            f"{folder}: shard {gaps[0]} is missing ({len(gaps)} such shards), so where the others "
            "start is unknown; add it or give the row offsets (--offsets)."
        )
    return np.cumsum([0, *(_rows(files[n]) for n in sorted(files))], dtype=np.int64)
