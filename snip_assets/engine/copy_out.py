"""A finished result copied to a url: what a user takes away, and what is needed to read it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import apart, progress
from .errors import BadInputError, StaleOutputError, without_secrets
from .layout import STATIONS, WHOLE, Layout, like_url
from .shards import load
from .storage.files import Manifest, atomic_path, manifest_path, require, with_digest, write_json
from .storage.locks import lock
from .storage.remote import DownloadError
from .storage.remote_files import BLOCK, as_path, exists, is_remote, remote_names
from .storage.transfers import remove, to_remote_alone, writing

RESULT = ("dup_bitmap", "deduped_metadata", "drop_list")
# Beside the outputs of all stations where they are a copy.
MARK = "copied.json"


@dataclass
class Count:
    """What a copy did: files copied, files that were there, bytes copied."""

    copied: int = 0
    there: int = 0
    bytes: int = 0


def copy_out(layout: Layout, to: str, *, every: bool = False) -> Count:
    """Copy the cleaned metadata, drop lists, bitmap and row offsets below a url or folder.

    Each output is checked against its manifest before it leaves, and its manifest follows it: an
    output whose manifest lies there already is not copied again, one without is unfinished. A
    former manifest leaves before the first file that changes. Memory: one block.

    Parameters
    ----------
    every
        Copy the outputs of all stations and the report, not the result alone.

    Raises
    ------
    StaleOutputError
        An output is missing or damaged.
    DownloadError
        The store refused a file, or holds another number of bytes afterwards.
    BadInputError
        The place is below the output folder itself, or no such kind of url is known.
    """
    root: Any = as_path(to)
    if isinstance(root, Path):
        if like_url(to) and "://" not in to:
            raise BadInputError(f"{to}: neither a path nor a url; a url has two slashes.")
        apart.from_outputs(root)
    if apart.place(root) == apart.place(layout.root):
        raise BadInputError(f"{to}: this is the output folder itself; give another place.")
    apart.from_sources(root, load(layout).source)
    if exists(root / manifest_path(layout.duplicate_groups).name) and not exists(root / MARK):
        raise BadInputError(f"{to}: holds another run, or one that was recut; give another place.")
    outputs = _outputs(layout, every)
    _require_no_others(layout, {output for output, _ in outputs}, root)
    count = Count()
    if every:
        # Else the next copy would take the groups for those of a run.
        with tempfile.TemporaryDirectory(prefix="snip-") as folder:
            write_json(Path(folder) / MARK, {"copy": "of the outputs of a run"})
            _copy(Path(folder) / MARK, root / MARK, count)
    for output, manifest in progress.track(outputs, "copy", len(outputs), "outputs"):
        _copy_output(layout, output, manifest, root, count)
    with tempfile.TemporaryDirectory(prefix="snip-") as folder:
        registry = Path(folder) / layout.registry.name
        _without_secrets(layout, registry)
        for path in (layout.row_offsets, registry):
            _copy(path, root / path.name, count)
    return count


def _without_secrets(layout: Layout, path: Path) -> None:
    """The registry as others may read it: urls of the sources without passwords and signatures."""
    value = json.loads(layout.registry.read_text())
    value.pop("digest", None)
    value["source"] = {name: without_secrets(url) for name, url in value["source"].items()}
    write_json(path, with_digest(value))


def _outputs(layout: Layout, every: bool) -> list[tuple[Path, Manifest]]:
    registry = load(layout)
    if not registry.shards:
        raise StaleOutputError(f"{layout}: no shards; run `snip shards sync`.")
    found = []
    for name in STATIONS if every else RESULT:
        keys = [""] if name in WHOLE else registry.keys
        for key, path in zip(keys, layout.outputs(name, registry.keys), strict=True):
            found.append((path, require(path, f"{name} {key}".rstrip(), "full")))
    report = layout.dedup_report
    if every and manifest_path(report).exists():
        found.append((report, require(report, "dedup_report", "full")))
    return found


def _require_no_others(layout: Layout, outputs: set[Path], root: Any) -> None:
    """Raise BadInputError where outputs of shards lie that this run does not have (any more)."""
    for folder in sorted({output.parent for output in outputs} - {layout.root}):
        there = root / folder.name
        names = (remote_names if is_remote(there) else os.listdir)(there) if exists(there) else []
        others = sorted(n for n in names if n.endswith(".parquet") and folder / n not in outputs)
        if others:
            raise BadInputError(
                f"{there / others[0]}: of a shard that this run does not have "
                f"({len(others)} such files in {there}). Remove them, each with its manifest, or "
                "give another place."
            )


def _copy_output(layout: Layout, output: Path, manifest: Manifest, root: Any, count: Count) -> None:
    there = root / manifest_path(output).relative_to(layout.root).as_posix()
    former = exists(there)
    if former and there.read_bytes() == manifest_path(output).read_bytes():
        count.there += len(manifest.files)
        return
    for name in manifest.files:
        path = output.parent / name
        target = root / path.relative_to(layout.root).as_posix()
        if _same(path, target):
            count.there += 1
            continue
        if former:
            _remove(there)
            former = False
        _write(path, target, count)
    _write(manifest_path(output), there, count)


def _same(path: Path, target: Any) -> bool:
    """Whether a file is there; large ones, which are not compared, count as others."""
    small = path.stat().st_size <= BLOCK
    return small and exists(target) and target.read_bytes() == path.read_bytes()


def _copy(path: Path, target: Any, count: Count) -> None:
    if _same(path, target):
        count.there += 1
    else:
        _write(path, target, count)


def _write(path: Path, target: Any, count: Count) -> None:
    size = path.stat().st_size
    if isinstance(target, Path):
        # Under its lock: what a command that was killed here left is removed.
        with writing(target), lock(target), atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
            if temporary.stat().st_size != size:
                raise DownloadError(f"{target}: not all of {size} bytes arrived; run again.")
    else:
        to_remote_alone(path, target)
    count.copied += 1
    count.bytes += size


def _remove(place: Any) -> None:
    if isinstance(place, Path):
        with writing(place):
            place.unlink(missing_ok=True)
    else:
        remove(place)
