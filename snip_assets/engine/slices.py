"""The slice of the decision that belongs to a shard, and digests of it.

Outputs of a shard depend on its own metadata and on its slice of the decision alone: a new shard
makes stale just those older shards in which a row's fate changed. Opened once for all shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from .errors import BadInputError
from .representatives import Representatives
from .shards import Shard
from .storage.files import open_npy

BATCH_ROWS = 1 << 16


class Slices:
    """A folder of `duplicate_groups`, read shard by shard; memory-mapped.

    Parameters
    ----------
    groups
        The folder.
    """

    def __init__(self, groups: Path) -> None:
        self.groups = groups

    @cached_property
    def kept_row(self) -> np.ndarray:
        """uint32 or uint64[N]: the kept row that explains each row."""
        return open_npy(self.groups / "kept_row.npy")

    @cached_property
    def kept_distance(self) -> np.ndarray:
        """float32[N], of a row to the kept one."""
        return open_npy(self.groups / "kept_distance.npy")

    @cached_property
    def labels(self) -> np.ndarray:
        """uint32 or uint64[N]: group of each row."""
        return open_npy(self.groups / "labels.npy")

    @cached_property
    def kept_rows(self) -> np.ndarray:
        """The kept row of each dropped row, ascending."""
        return open_npy(self.groups / "dropped_kept_rows.npy")

    @cached_property
    def dropped_rows(self) -> np.ndarray:
        """The dropped rows, in the order of `kept_rows`."""
        return open_npy(self.groups / "dropped_rows.npy")

    @cached_property
    def representatives(self) -> Representatives:
        """What is known of kept rows."""
        return Representatives(self.groups)

    def kept(self, start: int, stop: int) -> np.ndarray:
        """bool[stop - start]: is the row its own representative?"""
        return self.kept_row[start:stop] == np.arange(start, stop, dtype=self.kept_row.dtype)

    def of(self, shard: Shard) -> np.ndarray:
        """bool[rows]: which rows of a shard stay.

        Raises
        ------
        BadInputError
            Nothing is decided about it.
        """
        if len(self.kept_row) < shard.stop:
            raise BadInputError(
                f"{self.groups}: decides about {len(self.kept_row)} rows, shard {shard.key} ends "
                f"at row {shard.stop}; make the groups again."
            )
        return self.kept(shard.start, shard.stop)

    def stands_for(self, shard: Shard) -> slice:
        """Which of `dropped_rows` the rows of a shard stand for."""
        ends = np.array([shard.start, shard.stop], self.kept_rows.dtype)
        low, high = np.searchsorted(self.kept_rows, ends)
        return slice(int(low), int(high))

    def deduped_digest(
        self, shard: Shard, *, duplicate_count: bool = False, keep_captions: bool = False
    ) -> str:
        """Digest of all of the decision that `publish.deduped_metadata` of a shard depends on."""
        parts: list[Any] = [np.packbits(self.of(shard))]
        own = self.stands_for(shard)
        if duplicate_count or keep_captions:
            parts.append(self.kept_rows[own].astype(np.uint64) - np.uint64(shard.start))
        if keep_captions:
            parts.append(self.dropped_rows[own].astype(np.uint64))
        return _digest("deduped_metadata", duplicate_count, keep_captions, *parts)

    def drop_list_digest(self, shard: Shard) -> str:
        """Digest of all of the decision that the drop list of a shard depends on."""
        dropped = np.flatnonzero(~self.of(shard)) + shard.start
        digest = xxhash.xxh3_128(b"drop_list")
        for start in range(0, len(dropped), BATCH_ROWS):
            rows = dropped[start : start + BATCH_ROWS]
            kept_row = self.kept_row[rows]
            for part in (kept_row, self.kept_distance[rows], self.labels[rows], rows):
                digest.update(part.data)
            for text in self.representatives.take(kept_row, "url", "md5"):
                for part in _text_parts(text):
                    digest.update(part)
        return digest.hexdigest()


def _text_parts(text: pa.Array) -> Iterator[Any]:
    """The bytes of a text column: which are null, lengths, letters."""
    _, offsets, letters = text.buffers()
    ends = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    yield np.packbits(text.is_null().to_numpy(zero_copy_only=False)).data
    yield np.diff(ends).data
    if letters is not None:
        yield memoryview(letters)[ends[0] : ends[-1]]


def _digest(*parts: Any) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
