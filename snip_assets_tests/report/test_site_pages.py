"""Templates are read alike wherever they are."""

from __future__ import annotations

import os
import subprocess
import sys

from snip_assets.report import site_pages


def test_locale_without_utf_8() -> None:
    code = "from snip_assets.report import site_pages; print(site_pages.templates_version())"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    told = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert told.strip() == site_pages.templates_version()
