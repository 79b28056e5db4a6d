"""Download metadata shards and drop what a published bitmap marks, row by row id.

Shards come and go one after another: while some download, finished ones are filtered and their
originals removed, so the disk holds the kept rows and a few originals. A second call fetches
nothing that is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import row_offsets
from .apply_bitmap import Applied, Part, require_rows, write_kept
from .bitmap import Bitmap, BitOrder, digest
from .contents import format_of
from .errors import BadInputError, SnipError
from .fetch import Wanted, fetch_all, localise
from .progress import track
from .shards import METADATA_PATTERN
from .storage.files import Manifest, checksum, current, digest_of, manifest_path, read_manifest
from .storage.locations import drive_id, local_path, shown
from .storage.parquet_filter import require_apart
from .storage.parquet_source import parquet_rows
from .storage.remote import NotThereError, Policy, Session
from .storage.working_copies import discard

DEFAULT_BITMAP_NAME = "is_dup.npy"


@dataclass(frozen=True)
class Request:
    """What to download and where to.

    Attributes
    ----------
    out
        Output folder: `metadata/metadata_{key}.parquet` and the bitmap.
    metadata
        Template of the shards' locations (`row_offsets.location_of`).
    bitmap
        Location of the bitmap.
    start, end
        Shards, end excluded; None: all.
    offsets
        Location of the row offsets; `footers` reads the shards' footers; None finds a way.
    fetch_bitmap
        False uses the bitmap that a former call left in `out`.
    keep_originals
        Keep the downloaded shards in `originals/`.
    shards
        How many there are, where known.
    again
        Fetch and write what is there once more: a server may have other files by now.
    bit_order
        Of a bitmap of packed bits.
    """

    out: Path
    metadata: str
    bitmap: str
    start: int = 0
    end: int | None = None
    offsets: str | None = None
    fetch_bitmap: bool = True
    keep_originals: bool = False
    shards: int | None = None
    again: bool = False
    bit_order: BitOrder = "little"


def download(request: Request, policy: Policy | None = None) -> Applied:
    """Download shards `start` to `end`, write the rows that the bitmap does not mark.

    Raises
    ------
    BadInputError
        Bitmap, offsets and shards do not fit each other, or the start of the first shard cannot
        be found out; nothing is guessed.
    DownloadError
        A server does not deliver.
    """
    policy = policy or Policy()
    if request.start < 0 or (request.end is not None and request.end <= request.start):
        raise BadInputError(
            f"shards {request.start} to {request.end} (excluded): none; give a larger --end."
        )
    bounds, complete = find_offsets(request, policy)
    if bounds is not None and len(bounds) == 1:
        absent = shown(row_offsets.location_of(request.metadata, 0))
        raise BadInputError(f"{absent}: no metadata shard there; give another --metadata-url.")
    rows = int(bounds[-1]) if bounds is not None and complete else None
    marks = Bitmap(_bitmap(request, policy), rows, request.bit_order)
    end = request.end if bounds is None or request.end is not None else len(bounds) - 1
    if end is None or (bounds is not None and end > len(bounds) - 1):
        raise BadInputError(
            f"shards {request.start} to {end} (excluded) were asked for, but there are only "
            f"{len(bounds) - 1 if bounds is not None else 0}; give a smaller --end."
        )
    if rows is not None:
        marks.require(rows, f"the whole data set{_ends_before(request, end)}")
    done = Applied(proven=rows is not None)
    for manifest, skipped in _shards(request, marks, bounds, end, policy):
        done.add(manifest, skipped=skipped)
    return done


def _ends_before(request: Request, end: int) -> str:
    """Which shard is taken for one beyond the last, where nothing says how many there are."""
    if request.end is not None or request.shards is not None or request.offsets is not None:
        return ""
    absent = shown(row_offsets.location_of(request.metadata, end))
    return f" (of {end} shards: {absent} is the first that is not there)"


def _bitmap(request: Request, policy: Policy) -> Path:
    if local_path(request.bitmap) is not None:
        return localise(request.bitmap, request.out, "", format_of(request.bitmap), policy)
    name = bitmap_name(request.bitmap)
    if request.fetch_bitmap:
        form = format_of(name)
        return localise(request.bitmap, request.out, name, form, policy, again=request.again)
    if not (request.out / name).is_file():
        raise BadInputError(
            f"{request.out / name}: no bitmap from a former call; leave --no-dl-dedup-set out, or "
            "give its place with --bitmap."
        )
    return request.out / name


def bitmap_name(location: str) -> str:
    """The name that a bitmap gets in the output folder."""
    name = "" if drive_id(location) else Path(shown(location)).name
    return name if format_of(name) in ("npy", "bits") else DEFAULT_BITMAP_NAME


def find_offsets(request: Request, policy: Policy) -> tuple[np.ndarray | None, bool]:
    """Row offsets of the shards, and whether they cover the whole data set.

    None when they are not needed: from shard 0 on, each file's own rows say where the next starts.

    Raises
    ------
    BadInputError
        They are needed, and neither given nor to be read from the footers of the earlier shards.
    """
    if request.offsets not in (None, "footers"):
        given = str(request.offsets)
        place = localise(given, request.out, "row_offsets.npy", "npy", policy, again=request.again)
        return row_offsets.load(place), True
    needed = request.start > 0 or request.end is None or request.offsets == "footers"
    try:
        whole = request.end is None or _is_last(request, policy)
        if needed or whole:
            stop = request.end if request.end is not None else request.shards
            return row_offsets.from_footers(request.metadata, stop, policy), whole
    except NotThereError as error:
        raise BadInputError(
            f"Shards {request.start} to {request.end} (excluded) were asked for, but {error}"
        ) from error
    except SnipError as error:
        if needed:
            raise BadInputError(
                f"Where shard {request.start} starts in the bitmap depends on the rows of all "
                f"shards before it, and these cannot be counted: {error} Give the row offsets "
                "(--offsets: cumulative sizes, .npy)."
            ) from error
    return None, False


def _is_last(request: Request, policy: Policy) -> bool:
    """Whether the shard before `end` is the last one there is."""
    assert request.end is not None
    if request.shards is not None:
        return request.end >= request.shards
    with Session(policy) as session:
        return not row_offsets.exists(
            row_offsets.location_of(request.metadata, request.end), session
        )


def target_of(out: Path, shard: int) -> Path:
    """Where the kept rows of a shard go."""
    return out / "metadata" / METADATA_PATTERN.format(key=f"{shard:04d}")


def _shards(
    request: Request, marks: Bitmap, bounds: np.ndarray | None, end: int, policy: Policy
) -> Iterator[tuple[Manifest, bool]]:
    """Yield the manifest of each shard's output, and whether it was there."""
    numbers = range(request.start, end)
    if not numbers:
        raise BadInputError(f"no shard from {request.start} on: the data set ends before {end}.")
    known = () if request.again else numbers
    ready = {n: m for n in known if (m := _finished(request, marks, bounds, n))}
    require_apart(_local(request, numbers), target_of(request.out, 0).parent)
    originals = _originals(request, [n for n in numbers if n not in ready], policy)
    start = int(bounds[request.start]) if bounds is not None else 0
    for shard in track(numbers, "de-duplicate", len(numbers), "shards"):
        found = ready.get(shard)
        if found is not None and found.facts["start"] == start:
            yield found, True
            start += found.facts["rows"]
            continue
        # A shard that was ready starts elsewhere when an earlier one has changed.
        source = originals if found is None else _originals(request, [shard], policy)
        original = next(source)
        rows = parquet_rows(original)
        if bounds is not None:
            require_rows(row_offsets.location_of(request.metadata, shard), rows, bounds, shard)
        drop = marks.slice(start, start + rows)
        inputs = _inputs(request, shard, drop)
        part = Part(original, start, rows)
        yield write_kept(part, drop, target_of(request.out, shard), inputs), False
        start += rows
        _clear(request, original)


def _originals(request: Request, numbers: list[int], policy: Policy) -> Iterator[Path]:
    """Local files of these shards, in order; local ones stay where they are."""
    locations = [row_offsets.location_of(request.metadata, n) for n in numbers]
    places = [local_path(location) for location in locations]
    if all(place is not None for place in places):
        yield from (place for place in places if place is not None)
        return
    folder = _folder(request)
    names = [METADATA_PATTERN.format(key=f"{n:04d}") for n in numbers]
    wanted = [Wanted(w, folder / n, "parquet") for w, n in zip(locations, names, strict=True)]
    yield from (fetched.path for fetched in fetch_all(wanted, policy, again=request.again))


def _local(request: Request, numbers: Iterable[int]) -> list[Path]:
    """Places of those of these shards that lie on this machine."""
    places = (local_path(row_offsets.location_of(request.metadata, n)) for n in numbers)
    return [place for place in places if place is not None]


def _folder(request: Request) -> Path:
    return request.out / ("originals" if request.keep_originals else ".originals")


def _clear(request: Request, original: Path) -> None:
    folder = _folder(request)
    if request.keep_originals or original.parent != folder:
        return
    original.unlink()
    discard(manifest_path(original))
    if not any(folder.iterdir()):
        folder.rmdir()


def _inputs(request: Request, shard: int, drop: np.ndarray) -> dict[str, str]:
    location = row_offsets.location_of(request.metadata, shard)
    path = local_path(location)
    source = digest_of(location) if path is None else checksum(path)
    return {"metadata": source, "bitmap": digest(drop)}


def _finished(
    request: Request, marks: Bitmap, bounds: np.ndarray | None, shard: int
) -> Manifest | None:
    """The manifest of a shard's output if it is what this call would write."""
    target = target_of(request.out, shard)
    manifest = read_manifest(target)
    if manifest is None:
        return None
    start, rows = manifest.facts["start"], manifest.facts["rows"]
    if bounds is not None and (start, start + rows) != (bounds[shard], bounds[shard + 1]):
        return None
    if start + rows > len(marks):
        return None
    return current(target, _inputs(request, shard, marks.slice(start, start + rows)))
