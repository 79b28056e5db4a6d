"""Room in a working copy: nothing goes that does not lie at the url as it is here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from upath import UPath

from snip_assets.engine.storage import room
from snip_assets.engine.storage.files import manifest_path, seal
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.parts import Parts
from snip_assets.engine.storage.sent import Notes
from snip_assets.engine.storage.working_copy import WorkingCopy

PARTS = Parts(frozenset(), frozenset(), frozenset(["rows"]), frozenset())
LONG_AGO = 1e9


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkingCopy]:
    # All that lies at the url may go.
    monkeypatch.setattr(room, "RECENT", float("-inf"))
    url = UPath("memory://room/run")
    yield WorkingCopy(tmp_path / "A", url, PARTS)
    url.fs.store.clear()


def _make(copy: WorkingCopy, text: str, at: float) -> Path:
    path = copy.root / "rows" / "0"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))
    seal(path, {})
    return path


def _trim(copy: WorkingCopy) -> int:
    return room.trim(copy.root, Notes(copy.root), PARTS, 0)


def test_what_is_made_again_while_room_is_made_stays(
    copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.refresh()
    path = _make(copy, "old", LONG_AGO)
    copy.send()

    def now() -> float:
        # After the look at all files, and before they go.
        _make(copy, "new", LONG_AGO + 1)
        return time.time()

    monkeypatch.setattr(room, "time", SimpleNamespace(time=now))
    assert _trim(copy) == 3
    assert path.read_text() == "new"


def test_what_is_being_made_stays(copy: WorkingCopy) -> None:
    copy.refresh()
    path = _make(copy, "old", LONG_AGO)
    copy.send()
    with lock(path):
        _trim(copy)
        assert path.exists()
    assert _trim(copy) == 0
    assert not path.exists()


def test_what_a_part_and_the_whole_name_counts_once(copy: WorkingCopy) -> None:
    copy.refresh()
    part = _make(copy, "old", LONG_AGO)
    copy.send()
    # The whole names the files of its parts.
    whole = manifest_path(copy.root / "rows")
    whole.write_text(manifest_path(part).read_text().replace('"0"', '"rows/0"'))
    Notes(copy.root).note(whole.name, "remote")
    assert room.trim(copy.root, Notes(copy.root), PARTS, 3) == 3
    assert part.exists()
