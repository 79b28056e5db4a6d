"""Which of several nets is taken."""

from __future__ import annotations

import os
from pathlib import Path

from snip_assets.engine.fetch import Wanted, fetch
from snip_assets.engine.given_model import given_model
from snip_assets.engine.storage.files import seal

from .station_tools import start


def test_the_one_that_was_fetched_last_is_the_same_on_each_machine(tmp_path: Path) -> None:
    run = start(tmp_path / "out", model="published")
    folder = run.layout.published
    (tmp_path / "net").write_bytes(b"weights")
    for name in ("former", "later"):
        fetch(Wanted(str(tmp_path / "net"), folder / f"{name}.pth"))
    # A version before fetched this one, and did not note when.
    (folder / "old.pth").write_bytes(b"weights")
    seal(folder / "old.pth", {})
    # As they came to the working copy of another machine.
    for at, name in enumerate(("later", "former")):
        os.utime(folder / f"{name}.pth", (at, at))
    assert given_model(run) == folder / "later.pth"
