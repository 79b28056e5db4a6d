"""A copy elsewhere: each output of it is whole, or has no manifest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from snip_assets.engine import copy_out as module
from snip_assets.engine.copy_out import copy_out
from snip_assets.engine.layout import Layout
from snip_assets.engine.storage.files import MANIFEST
from snip_assets.engine.storage.remote_files import as_path

from .station_tools import start, until_published


def _outputs(layout: Layout, keys: list[str]) -> list[Path]:
    shards = [path(key) for path in (layout.deduped_metadata, layout.drop_list) for key in keys]
    return [layout.dup_bitmap, *shards]


def _wrong(root: Any, outputs: list[str]) -> list[str]:
    """Files that are not what the manifest beside them says."""
    found = []
    for output in outputs:
        manifest = root / f"{output}{MANIFEST}"
        files = json.loads(manifest.read_text())["files"] if manifest.exists() else {}
        for name, entry in files.items():
            member = (root / output).parent / name
            if xxhash.xxh3_128(member.read_bytes()).hexdigest() != entry["xxh3"]:
                found.append(str(member))
    return found


@pytest.mark.parametrize("url", [False, True], ids=["folder", "url"])
def test_one_that_is_cut_short_shows_no_output_that_is_not_whole(
    url: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path / "out", ["0000"])
    until_published(run)
    to = "memory://copy-out/copy" if url else str(tmp_path / "copy")
    copy_out(run.layout, to)
    run = start(tmp_path / "out", ["0000", "0001"])
    until_published(run)
    names = [p.relative_to(run.layout.root).as_posix() for p in _outputs(run.layout, ["0000"])]
    whole = module._write
    for most in range(4):
        copied = itertools.count()

        def dying(path: Path, target: Any, count: module.Count, files=copied, most=most) -> None:
            if next(files) == most:
                raise KeyboardInterrupt
            whole(path, target, count)

        monkeypatch.setattr(module, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            copy_out(run.layout, to)
        assert _wrong(as_path(to), names) == []
    monkeypatch.setattr(module, "_write", whole)
    copy_out(run.layout, to)
    for output in _outputs(run.layout, ["0000", "0001"]):
        manifest = output.relative_to(run.layout.root).as_posix() + MANIFEST
        assert (as_path(to) / manifest).read_bytes() == (run.layout.root / manifest).read_bytes()


def test_who_reads_the_former_file_reads_it_to_its_end(tmp_path: Path) -> None:
    run, copy = start(tmp_path / "out", ["0000"]), tmp_path / "copy"
    until_published(run)
    copy_out(run.layout, str(copy))
    former = (copy / "dup_bitmap" / "dup_bitmap.npy").read_bytes()
    with open(copy / "dup_bitmap" / "dup_bitmap.npy", "rb") as reader:
        run = start(tmp_path / "out", ["0000", "0001"])
        until_published(run)
        copy_out(run.layout, str(copy))
        assert reader.read() == former != (copy / "dup_bitmap" / "dup_bitmap.npy").read_bytes()
    assert not list(copy.rglob(".tmp-*"))
