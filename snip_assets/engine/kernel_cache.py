"""Where compiled kernels lie: a folder that can be written, another one for each state of the code.

Numba keeps a kernel beside its module and asks only whether that module has changed, not those
whose constants and functions went into it. A package that is installed for all users cannot be
written, and a service may have no home.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

import xxhash

VARIABLE = "NUMBA_CACHE_DIR"
_OWN = re.compile(r"/snip_assets[^/]*/kernels-[0-9a-f]{16}$")
# After so many days the kernels of other code go.
KEPT_DAYS = 30


def use(environment: MutableMapping[str, str] = os.environ) -> None:
    """Name the folder to Numba, unless the user has: below XDG_CACHE_HOME or ~/.cache.

    Where that cannot be written, a folder in the temporary one that belongs to this user alone.
    """
    given = environment.get(VARIABLE, "")
    # A process that started this one may have had other code.
    if given and not _OWN.search(given):
        return
    folder = _made(_candidates(environment)) or Path(tempfile.mkdtemp(prefix="snip_assets-"))
    environment[VARIABLE] = str(folder)
    if (numba := sys.modules.get("numba")) is not None:
        numba.config.CACHE_DIR = str(folder)
    _prune(folder)


def _candidates(environment: MutableMapping[str, str]) -> list[Path]:
    name, found = f"kernels-{digest()}", []
    # There may be no home.
    with suppress(RuntimeError):
        cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        found.append(Path(cache) / "snip_assets" / name)
    return [*found, Path(tempfile.gettempdir()) / f"snip_assets-{os.getuid()}" / name]


def _made(candidates: list[Path]) -> Path | None:
    """The first that this user, and nobody else, can write."""
    for folder in candidates:
        with suppress(OSError):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            owner = folder.parent.stat()
            # What others can write must not be loaded: a kernel is code.
            if owner.st_uid == os.getuid() and not owner.st_mode & 0o022:
                with tempfile.TemporaryFile(dir=folder):
                    return folder
    return None


def digest() -> str:
    """Changes when a module with kernels does."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    found = xxhash.xxh3_64()
    for text in texts:
        if b"numba" in text:
            found.update(text)
    return found.hexdigest()


def _prune(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    with suppress(OSError):
        os.utime(folder)
        for other in folder.parent.glob("kernels-*"):
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)
