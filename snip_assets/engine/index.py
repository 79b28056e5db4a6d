"""The index: every row's code, list by list, memory-mapped.

Immutable segments, each a few shards merged list by list, so that an arrival never rewrites the
whole. A segment is a folder with `list_offsets.npy` int64[lists + 1], `codes.npy` uint8[n, size]
and `rows.npy` (row ids: uint32 while they fit, else uint64): 12 bytes a row with `PQ8`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numba import njit

from .errors import BadInputError, StaleOutputError, made_again
from .layout import Layout
from .progress import track
from .storage.files import (
    MANIFEST,
    CheckLevel,
    NpyWriter,
    atomic_path,
    damage,
    digest_of,
    manifest_path,
    open_npy,
    read_manifest,
    require,
    save_npy,
    seal,
    write_json,
)
from .storage.folders import remove
from .storage.resident import trim
from .storage.working_copies import discard, here
from .tally import tally
from .trained import TrainedIndex

MERGE_BYTES = 1 << 28


@njit(nogil=True, cache=True)
def _place(rows, codes, offsets, start, cursor, out_rows, out_codes):
    """Copy some lists of one part, which end at `offsets`, behind what lies there already."""
    base = offsets[0]
    for number in range(len(offsets) - 1):
        position = cursor[number]
        for i in range(offsets[number] - base, offsets[number + 1] - base):
            out_rows[position] = rows[i] + start
            for b in range(codes.shape[1]):
                out_codes[position, b] = codes[i, b]
            position += 1
        cursor[number] = position


@njit(nogil=True, cache=True)
def _taken(own, code, start, left_out, rows, codes, count):
    """Copy what one part has of a list behind `count` rows; how many there are then."""
    marked = np.zeros(len(own), np.bool_)
    if len(left_out):
        # In a loop of its own: a row waits for no other then.
        for i in range(len(own)):
            marked[i] = left_out[np.uint64(own[i]) + start]
    for i in range(len(own)):
        rows[count] = np.uint64(own[i]) + start
        for k in range(code.shape[1]):
            codes[count, k] = code[i, k]
        count += not marked[i]
    return count


@dataclass(frozen=True)
class IndexedShard:
    """An index shard that goes into the index: its first row id, rows, folder and version."""

    key: str
    start: int
    rows: int
    folder: Path
    version: str

    @property
    def merged(self) -> str:
        """What of it goes into a segment: its codes, and its row ids."""
        return f"{self.version} from row {self.start}"


@dataclass(frozen=True)
class ListFolder:
    """A segment or an index shard: rows and codes by list, and the row id of its row 0."""

    folder: Path
    start: int

    def open(self, name: str) -> np.ndarray:
        """Memory map of one of its arrays."""
        return open_npy(self.folder / f"{name}.npy")


def stored_row_dtype(rows: int) -> np.dtype:
    """Type of the row ids in a segment: 4 bytes while those of `rows` rows fit, else 8."""
    return np.dtype(np.uint32 if rows <= 1 << 32 else np.uint64)


def merge(parts: list[ListFolder], out: Path, rows: int, memory: int = 0) -> dict[str, Any]:
    """Merge parts list by list into a segment.

    Reads each part in slices of consecutive lists, so memory stays near `memory` bytes and
    there is no Python loop over lists. One part is open at a time, offsets included: thousands
    of parts need no more memory, nor open files, than one.

    Parameters
    ----------
    parts
        In order of their row ids.
    rows
        Rows of the whole data set, for the width of row ids.
    memory
        0: 256 MiB, more (up to a GiB) for many parts, so that each is opened a few times only.

    Returns
    -------
    Facts: rows, bytes.
    """
    memory = memory or min(max(MERGE_BYTES, len(parts) << 19), 1 << 30)
    total = np.zeros(len(parts[0].open("list_offsets")), np.int64)
    for part in parts:
        total += part.open("list_offsets")
    first = parts[0].open("codes")
    dtype, size = stored_row_dtype(rows), first.shape[1]
    entry = size + dtype.itemsize
    lists = len(total) - 1
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        save_npy(folder / "list_offsets.npy", total)
        n = int(total[-1])
        with (
            NpyWriter(folder / "codes.npy", (n, size), np.uint8) as codes_file,
            NpyWriter(folder / "rows.npy", (n,), dtype) as rows_file,
        ):
            low = 0
            while low < lists:
                bound = total[low] + memory // entry
                high = max(low + 1, int(np.searchsorted(total, bound, "right")) - 1)
                high = min(high, lists)
                out_rows, out_codes = _merge_slice(parts, total, low, high, dtype, size)
                codes_file.append(out_codes)
                rows_file.append(out_rows)
                low = high
    return {"rows": n, "bytes": n * entry}


def _merge_slice(parts, total, low, high, dtype, size):
    n = int(total[high] - total[low])
    out_rows, out_codes = np.empty(n, dtype), np.empty((n, size), np.uint8)
    cursor = (total[low:high] - total[low]).copy()
    for part in parts:
        own = np.asarray(part.open("list_offsets")[low : high + 1])
        a, b = int(own[0]), int(own[-1])
        if a == b:
            continue
        rows, codes = part.open("rows")[a:b], part.open("codes")[a:b]
        start = np.asarray(part.start, dtype)
        _place(np.asarray(rows), np.asarray(codes), own, start, cursor, out_rows, out_codes)
        trim()
    return out_rows, out_codes


class SnipIndex:
    """All rows list by list, over segments.

    Parameters
    ----------
    trained
        The trained index that every segment was encoded with.
    parts
        Segments (or index shards) that together hold every row once.
    """

    def __init__(self, trained: TrainedIndex, parts: list[ListFolder]) -> None:
        self.trained = trained
        self.parts = parts
        self._offsets = [np.asarray(p.open("list_offsets")) for p in parts]
        self._rows = [np.asarray(p.open("rows")) for p in parts]
        codes = [np.asarray(p.open("codes")) for p in parts]
        # As numbers as wide as their size allows.
        self._codes = [code.view(f"u{gcd(8, code.shape[1])}") for code in codes]

    @classmethod
    def open(cls, layout: Layout) -> SnipIndex:
        """Open the index of an output folder."""
        folder = layout.snip_index
        trained = TrainedIndex.load(layout.trained_index / "trained.index")
        return cls(trained, [ListFolder(folder / s["name"], 0) for s in read_segments(folder)])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(sum(o[-1] for o in self._offsets))

    @property
    def list_sizes(self) -> np.ndarray:
        """int64[lists]."""
        return np.diff(np.sum(self._offsets, axis=0))

    def times(self, rows: int) -> np.ndarray:
        """How often each of so many rows is in the index: uint8[rows], 2 for twice or more.

        Raises
        ------
        BadInputError
            It holds other rows.
        """
        parts = [(own, part.start) for part, own in zip(self.parts, self._rows, strict=True)]
        times, beyond = tally(parts, rows)
        if beyond:
            raise BadInputError(
                f"{self.parts[beyond[0]].folder}: holds rows beyond the {rows} of the data set; "
                "delete the folder snip_index with its manifest and materialise it again."
            )
        return times

    def read_list(
        self, number: int, left_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row ids (uint64, ascending) and codes of one inverted list.

        Parameters
        ----------
        left_out
            bool[N]: rows to pass over.
        """
        left_out = np.empty(0, np.bool_) if left_out is None else left_out
        room = sum(int(offsets[number + 1] - offsets[number]) for offsets in self._offsets)
        word = self._codes[0]
        rows, codes = np.empty(room, np.uint64), np.empty((room, word.shape[1]), word.dtype)
        count, ordered = 0, True
        for part, offsets, own, code in zip(
            self.parts, self._offsets, self._rows, self._codes, strict=True
        ):
            inside = slice(offsets[number], offsets[number + 1])
            start = np.uint64(part.start)
            before = count
            count = _taken(own[inside], code[inside], start, left_out, rows, codes, count)
            ordered &= not 0 < before < count or rows[before - 1] < rows[before]
        rows, codes = rows[:count], codes[:count]
        if not ordered:
            order = np.argsort(rows, kind="stable")
            rows, codes = rows[order], codes[order]
        return rows, codes.view(np.uint8)

    def to_faiss(self) -> faiss.IndexIVF:
        """A plain FAISS index in memory: 16 bytes a row with `PQ8` (FAISS ids take 8)."""
        index: Any = faiss.clone_index(self.trained.index)
        for number in range(self.trained.lists):
            ids, codes = self.read_list(number)
            if len(ids):
                wide = np.ascontiguousarray(ids.astype(np.int64))
                index.invlists.add_entries(
                    number, len(wide), faiss.swig_ptr(wide), faiss.swig_ptr(codes)
                )
        index.ntotal = self.rows
        return index


def export(layout: Layout, path: Path) -> None:
    """Write a plain FAISS index that `faiss.read_index` opens and searches.

    Row ids stay those of the whole data set. Memory: the index in FAISS's form, 16 bytes a row
    with `PQ8`.
    """
    with atomic_path(path) as temporary:
        faiss.write_index(SnipIndex.open(layout).to_faiss(), str(temporary))


def read_segments(folder: Path) -> list[dict[str, Any]]:
    """The segments of a `snip_index` folder: name, keys, rows."""
    try:
        return json.loads(here(folder / "segments.json").read_text())
    except FileNotFoundError as error:
        raise StaleOutputError(f"{folder}: no index here; materialise snip_index first.") from error
    except ValueError as error:
        raise BadInputError(f"{folder / 'segments.json'}: damaged; rebuild the index.") from error


def plan_segments(present: list[dict[str, Any]], arrived: list[tuple[str, int]]) -> list[dict]:
    """Which segments to have after shards arrived: those kept, and one to merge.

    The arrivals form a new segment, which takes in the youngest segments while these are not at
    least twice its size: so there are at most log2 of the shards many, and a row is rewritten at
    most that often.

    Parameters
    ----------
    present
        Segments: {"name", "keys", "rows"}.
    arrived
        (key, rows) of shards not yet in the index.
    """
    if not arrived:
        return present
    kept = list(present)
    keys, rows = [k for k, _ in arrived], sum(n for _, n in arrived)
    while kept and kept[-1]["rows"] < 2 * rows:
        last = kept.pop()
        keys, rows = last["keys"] + keys, rows + last["rows"]
    return [*kept, {"name": None, "keys": keys, "rows": rows}]


def update(
    folder: Path, shards: list[IndexedShard], rows: int, check: CheckLevel = "size"
) -> list[dict[str, Any]]:
    """Bring a `snip_index` folder up to these shards, by ordinal.

    Segments are named after what is in them; those whose shards changed are merged again.

    Parameters
    ----------
    rows
        Rows of the whole data set.
    check
        How shards are checked before they are merged.

    Returns
    -------
    The segments now there: name, keys, rows, versions.
    """
    try:
        present = read_segments(folder)
    except StaleOutputError:
        present = []
    by_key = {s.key: s for s in shards}

    def whole(segment: dict[str, Any]) -> bool:
        versions = {k: by_key[k].merged for k in segment["keys"] if k in by_key}
        place = folder / segment["name"]
        manifest = read_manifest(place) if versions == segment["versions"] else None
        # One that is damaged is merged again.
        return manifest is not None and not damage(place, manifest, check)

    kept = [s for s in present if whole(s)]
    held = {k for s in kept for k in s["keys"]}
    arrived = [(s.key, s.rows) for s in shards if s.key not in held]
    segments = plan_segments(kept, arrived)
    for segment in track(segments, "merge", len(segments), "segments"):
        if segment["name"] is None:
            members = sorted((by_key[k] for k in segment["keys"]), key=lambda s: s.start)
            for member in members:
                require(member.folder, f"index_shards {member.key}", check)
            segment["keys"] = [s.key for s in members]
            segment["versions"] = {s.key: s.merged for s in members}
            segment["name"] = f"segment-{digest_of(segment['versions'])[:12]}"
            out = folder / str(segment["name"])
            merge([ListFolder(s.folder, s.start) for s in members], out, rows)
            _require_same(members)
            seal(out, segment["versions"])
    write_json(folder / "segments.json", segments)
    _sweep(folder, {s["name"] for s in segments})
    return segments


def _require_same(members: list[IndexedShard]) -> None:
    for member in members:
        now = read_manifest(member.folder)
        if now is None or now.version != member.version:
            raise made_again(f"index_shards {member.key}:", "merged")


def _sweep(folder: Path, wanted: set[str]) -> None:
    # By their manifests too: in a working copy the files need not be here.
    names = {path.name.removesuffix(MANIFEST) for path in folder.glob("segment-*")}
    for path in (folder / name for name in names - wanted):
        discard(manifest_path(path))
        remove(path)
    for path in folder.glob(".tmp-*"):
        remove(path)
