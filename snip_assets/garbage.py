"""When Python looks for garbage: not while modules are loaded, nor later among what they hold."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Load modules in two thirds of the time; what they hold is not gone over again after it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        freeze()
        if enabled:
            gc.enable()


def freeze() -> None:
    """Look for no garbage among what there is now: at the end of a command it takes a second."""
    # DuckDB takes what is not collected for leaks, and prints a hundred lines about them.
    if "duckdb" not in sys.modules:
        gc.freeze()
