"""Files of a working copy that go between the look for them and the reading come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from snip_assets.engine.storage import comparisons, files, parquet_source, working_copies
from snip_assets.engine.storage.files import CheckLevel
from snip_assets.engine.storage.parts import Parts
from snip_assets.engine.storage.working_copy import WorkingCopy

PARTS = Parts(frozenset(), frozenset(), frozenset(["rows"]), frozenset())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkingCopy]:
    url = UPath("memory://looks/run")
    copy = WorkingCopy(tmp_path / "A", url, PARTS)
    monkeypatch.setattr(working_copies, "_open", {copy.root: copy})
    yield copy
    copy.settle()
    url.fs.store.clear()


def _goes(look: Callable[..., Any], path: Path, *, before: bool) -> Callable[..., Any]:
    """Once, `path` goes as if room had been made, before it is looked at or after that."""
    left = [path]

    def call(*values: Any, **named: Any) -> Any:
        if left and before:
            left.pop().unlink()
        found = look(*values, **named)
        if left:
            left.pop().unlink()
        return found

    return call


@pytest.fixture
def array(copy: WorkingCopy) -> Path:
    path = copy.root / "rows" / "0.npy"
    files.write_npy(path, np.arange(3))
    files.seal(path, {})
    copy.send()
    return path


def test_an_array_is_read_though_room_is_made(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "mapped", _goes(files.mapped, array, before=True))
    assert files.open_npy(array).tolist() == [0, 1, 2]


def test_a_table_is_read_though_room_is_made(
    copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy.root / "rows" / "0.parquet"
    files.write_parquet(path, pa.table({"a": [1, 2]}))
    files.seal(path, {})
    copy.send()
    gone = _goes(pq.ParquetFile, path, before=True)
    monkeypatch.setattr(parquet_source.pq, "ParquetFile", gone)
    assert parquet_source.parquet_rows(path) == 2


@pytest.mark.parametrize("level", ["size", "recent", "full"])
def test_what_goes_while_an_output_is_compared_is_no_damage(
    array: Path, level: CheckLevel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "_here", {})
    for module, name in ((working_copies, "here_or_fetched"), (comparisons, "state")):
        with monkeypatch.context() as patch:
            files.open_npy(array)
            patch.setattr(module, name, _goes(getattr(module, name), array, before=False))
            assert files.require(array, "rows 0", level).files
