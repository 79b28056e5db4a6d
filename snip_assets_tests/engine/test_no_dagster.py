"""The engine is a library of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import snip_assets.engine

FOLDER = Path(snip_assets.engine.__file__).parent


def test_no_module_names_dagster_in_an_import() -> None:
    pattern = re.compile(r"^\s*(import|from)\s+dagster", re.MULTILINE)
    assert [p.name for p in FOLDER.rglob("*.py") if pattern.search(p.read_text())] == []


def test_importing_all_of_it_loads_no_dagster() -> None:
    names = [f"snip_assets.engine.{p.stem}" for p in FOLDER.glob("*.py") if p.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_windows_is_told_what_to_use() -> None:
    code = "import sys; sys.platform = 'win32'; import snip_assets.engine"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        "ImportError: snip_assets needs Linux; on Windows"
    )
