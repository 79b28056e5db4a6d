"""The notebook runs from start to end, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parent.parent / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def tour() -> nbformat.NotebookNode:
    return nbformat.read(TOUR, as_version=4)


def test_it_runs(tour: nbformat.NotebookNode, tmp_path: Path) -> None:
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(tour, timeout=250, kernel_name="python3", resources=place).execute()
    assert (tmp_path / "out/tour/dedup_report/index.html").is_file()


def test_it_is_stored_with_its_pictures_and_without_paths() -> None:
    stored = nbformat.read(TOUR, as_version=4)
    outputs = [o for cell in stored.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 5
    assert not any(o.output_type == "error" for o in outputs)
    assert not any("/" + name in TOUR.read_text() for name in ("home/", "tmp/", "root/"))
