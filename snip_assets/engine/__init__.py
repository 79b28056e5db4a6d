"""The engine: a plain library that knows nothing of Dagster."""

import sys

if sys.platform == "win32":
    # Locks, limits and reads by position are those of POSIX.
    raise ImportError(
        "snip_assets needs Linux; on Windows, install it inside WSL 2 "
        "(https://learn.microsoft.com/windows/wsl/install)."
    )

from . import kernel_cache

kernel_cache.use()
