"""The engine: a plain library that knows nothing of Dagster."""

from . import kernel_cache

kernel_cache.use()
