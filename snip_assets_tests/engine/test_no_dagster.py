"""The engine is a library of its own."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snip_assets.engine

FOLDER = Path(snip_assets.engine.__file__).parent


def test_no_module_names_dagster_in_an_import() -> None:
    pattern = re.compile(r"^\s*(import|from)\s+dagster", re.MULTILINE)
    assert [p.name for p in FOLDER.rglob("*.py") if pattern.search(p.read_text())] == []


def test_importing_all_of_it_loads_no_dagster() -> None:
    names = [m.name for m in pkgutil.walk_packages([str(FOLDER)], "snip_assets.engine.")]
    assert "snip_assets.engine.kernels.tiles" in names
    code = f"import sys, {', '.join(names)}; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("package", "known"), [("kernels", set()), ("storage", {"errors"})])
def test_the_lower_floors_do_not_know_the_upper(package: str, known: set[str]) -> None:
    for path in (FOLDER / package).glob("*.py"):
        # What types alone need is indented.
        found = re.findall(r"^from snip_assets\.engine\.(\w+)", path.read_text(), re.MULTILINE)
        assert set(found) <= known, path.name


def test_windows_is_told_what_to_use() -> None:
    code = "import sys; sys.platform = 'win32'; import snip_assets.engine"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        "ImportError: snip_assets needs Linux; on Windows"
    )
