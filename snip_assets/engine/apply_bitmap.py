"""Drop what a bitmap marks from a folder of metadata shards: each row by its own row id.

Where a file starts in the bitmap comes from the row counts of *all* files before it (their
footers) or from row offsets, never from what was written. Memory: one row group, and one byte a
row of one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from . import apart, row_offsets
from .bitmap import Bitmap, BitOrder, digest
from .errors import BadInputError
from .layout import local
from .progress import track
from .sources import natural
from .storage.files import Manifest, checksum, current, seal
from .storage.locks import lock
from .storage.parquet_filter import filter_parquet, require_apart
from .storage.parquet_source import parquet_rows

_NUMBER = re.compile(r"(\d+)(?!.*\d)")
# As Hugging Face names shards, often with a hash behind.
_OF = re.compile(r"(?<!\d)(\d+)-of-\d+(?!\d)")
# As Spark names them: part-00000-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet.
_PART = re.compile(r"part-(\d+)(?!\d)")


@dataclass(frozen=True)
class Part:
    """A metadata file and the row ids that it holds: `start` to `start + rows`."""

    source: Path
    start: int
    rows: int


@dataclass
class Applied:
    """What was done.

    Attributes
    ----------
    files, rows, kept
        Files written (or found up to date), rows read, rows kept.
    skipped
        Files that a former call had written.
    missing
        Shards that the offsets know and the folder lacks.
    proven
        Whether the bitmap's length was held against the rows of all shards.
    by_name
        Whether nothing but the names of the files told their order.
    """

    files: int = 0
    rows: int = 0
    kept: int = 0
    skipped: int = 0
    missing: list[str] = field(default_factory=list)
    proven: bool = True
    by_name: bool = False

    @property
    def dropped(self) -> int:
        """Rows dropped."""
        return self.rows - self.kept

    def add(self, manifest: Manifest, *, skipped: bool) -> None:
        """Count a finished file."""
        self.files += 1
        self.skipped += skipped
        self.rows += manifest.facts["rows"]
        self.kept += manifest.facts["kept"]


def apply_bitmap(
    metadata: Path,
    out: Path,
    bitmap: Path,
    offsets: Path | None = None,
    bit_order: BitOrder = "little",
) -> Applied:
    """Write the kept rows of every metadata file to `out`, under the same name.

    Parameters
    ----------
    metadata
        Folder of Parquet files (or one file), numbered as the shards are.
    offsets
        .npy of row offsets. Without it, and without the `shards.json` of a bitmap of ours, the
        folder must hold all shards, in the order of their numbers.
    bit_order
        Of a bitmap of packed bits.

    Raises
    ------
    BadInputError
        The bitmap does not fit the files; nothing is written.
    """
    require_apart(_files(metadata), out)
    apart.from_outputs(out)
    marks, parts, done = _parts(metadata, bitmap, offsets, bit_order)
    for part in track(parts, "apply bitmap", len(parts), "files"):
        drop = marks.slice(part.start, part.start + part.rows)
        inputs = {"metadata": checksum(part.source), "bitmap": digest(drop)}
        target = out / part.source.name
        found = current(target, inputs)
        done.add(found or write_kept(part, drop, target, inputs), skipped=found is not None)
    return done


def write_kept(part: Part, drop: np.ndarray, target: Path, inputs: dict[str, str]) -> Manifest:
    """Write one output file and seal it."""
    kept = part.rows - int(np.count_nonzero(drop))
    with lock(target):
        filter_parquet(part.source, target, ~drop)
        return seal(target, inputs, rows=part.rows, kept=kept, start=part.start)


def _parts(
    metadata: Path, bitmap: Path, offsets: Path | None, bit_order: BitOrder
) -> tuple[Bitmap, list[Part], Applied]:
    """Which row ids each file holds, proven against the length of the bitmap.

    Returns
    -------
    The bitmap, the files in order, and what is known before any is written.
    """
    files = _files(metadata)
    sizes = [parquet_rows(path) for path in files]
    # A bitmap of ours lies beside the list of its shards, or in the folder of its run.
    listed = row_offsets.listed_beside(bitmap) or row_offsets.listed_beside(bitmap.parent)
    keys, bounds = listed or (None, None)
    if offsets is not None:
        bounds = row_offsets.load(offsets)
        keys = row_offsets.keys_beside(offsets) or keys
    keys = keys if bounds is not None and keys and len(keys) == len(bounds) - 1 else None
    if keys is None:
        _require_one_order(files)
    if bounds is None:
        marks = Bitmap(bitmap)
        _require_all(marks, files, sizes, metadata)
        starts = np.cumsum([0, *sizes])
        found = list(map(Part, files, map(int, starts), sizes))
        return marks, found, Applied(by_name=len(files) > 1)
    marks = Bitmap(bitmap, int(bounds[-1]), bit_order)
    marks.require(int(bounds[-1]), f"the data set of {offsets or 'its shards.json'}")
    ordinals, missing = _ordinals(files, bounds, keys)
    parts = [Part(p, int(bounds[o]), n) for p, o, n in zip(files, ordinals, sizes, strict=True)]
    for part, ordinal in zip(parts, ordinals, strict=True):
        require_rows(part.source, part.rows, bounds, ordinal)
    return marks, parts, Applied(missing=missing, by_name=keys is None and len(files) > 1)


def require_rows(path: Path | str, rows: int, bounds: np.ndarray, ordinal: int) -> None:
    """Raise BadInputError unless a shard has the rows that the offsets say."""
    expected = int(bounds[ordinal + 1] - bounds[ordinal])
    if rows != expected:
        raise BadInputError(
            f"{path}: {rows} rows, but shard {ordinal} has {expected} by the row offsets; it is "
            "another version of the data set, or already de-duplicated."
        )


def number_of(path: Path) -> int | None:
    """The number in a file's name: that of `00000-of-00002` or `part-00000`, else the last one."""
    found = _OF.search(path.stem) or _PART.match(path.stem) or _NUMBER.search(path.stem)
    return int(found[1]) if found else None


def _files(metadata: Path) -> list[Path]:
    if metadata.is_file():
        return [metadata]
    if not local(metadata).is_dir():
        raise BadInputError(f"{metadata}: no such folder.")
    files = [p for p in metadata.iterdir() if p.suffix == ".parquet" and p.name[0] != "."]
    if not files:
        raise BadInputError(f"{metadata}: no .parquet file in this folder.")
    # By number, so that shard 10000 comes after shard 9999.
    return sorted(files, key=lambda p: (-1 if (n := number_of(p)) is None else n, p.name))


def _require_one_order(files: list[Path]) -> None:
    """Raise BadInputError if numbers say one thing about the order, and names another."""
    for one, other in pairwise(files):
        if natural(one.stem) > natural(other.stem):
            raise BadInputError(
                f"{one.parent}: is {one.name} before or after {other.name}? Their numbers say one "
                "thing and the rest of their names another. Name the files by their shard number "
                "(metadata_0000.parquet)."
            )


def _key(path: Path) -> str:
    return path.stem.removeprefix("metadata_")


def _require_all(marks: Bitmap, files: list[Path], sizes: list[int], metadata: Path) -> None:
    if len(marks) == sum(sizes):
        return
    numbers = {n for n in map(number_of, files) if n is not None}
    # A date in a name is no number of a shard.
    likely = max(numbers, default=0) < 100 * len(files)
    gaps = sorted(set(range(max(numbers))) - numbers) if numbers and likely else []
    if len(marks) > sum(sizes) and gaps:
        shown = ", ".join(map(str, gaps[:20])) + (" …" if len(gaps) > 20 else "")
        raise BadInputError(
            f"{metadata}: {len(gaps)} shards are missing ({shown}): {sum(sizes)} rows are here, "
            f"the bitmap has {len(marks)}. Add them, or give --offsets."
        )
    try:
        marks.require(sum(sizes), f"the metadata in {metadata} ({len(files)} files)")
    except BadInputError as error:
        raise BadInputError(f"{error} If shards are missing, give --offsets.") from error


def _ordinals(
    files: list[Path], bounds: np.ndarray, keys: list[str] | None
) -> tuple[list[int], list[str]]:
    """Place of each file in the offsets, and the shards without a file."""
    shards = len(bounds) - 1
    if keys is not None:
        places = {key: ordinal for ordinal, key in enumerate(keys)}
        found = [places.get(_key(p)) for p in files]
    elif len(files) == shards:
        return list(range(shards)), []
    else:
        keys = [str(n) for n in range(shards)]
        found = [n if (n := number_of(p)) is not None and n < shards else None for p in files]
    unknown = [p.name for p, o in zip(files, found, strict=True) if o is None]
    ordinals = [o for o in found if o is not None]
    if unknown or len(set(ordinals)) < len(ordinals):
        name = (unknown or [files[0].name])[0]
        raise BadInputError(
            f"{files[0].parent}: which of the {shards} shards is {name}? "
            "Name the files by their shard (metadata_0000.parquet), each once."
        )
    missing = sorted(set(range(shards)) - set(ordinals))
    return ordinals, [keys[n] for n in missing]
