"""Files sent to a store that holds something else afterwards, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from upath import UPath

from snip_assets.engine.storage import transfers
from snip_assets.engine.storage.remote import DownloadError


@pytest.fixture
def place() -> Iterator[UPath]:
    yield UPath("memory://transfers/a")
    UPath("memory://transfers").fs.store.clear()


def test_a_file_that_went_here_is_not_sent(place: UPath, tmp_path: Path) -> None:
    assert transfers.to_remote(tmp_path / "a", place) is None
    with pytest.raises(DownloadError, match="not all of"):
        transfers.to_remote_alone(tmp_path / "a", place)


def test_nobody_waits_after_the_last_look(
    place: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transfers, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(transfers, "info_of", lambda _: {"size": 1})
    (tmp_path / "a").write_text("longer")
    assert transfers.to_remote(tmp_path / "a", place) is None
    assert len(waited) == transfers.LOOKS - 1
