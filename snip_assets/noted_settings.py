"""Settings noted in an output folder: what is made there later is made alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .engine.errors import BadInputError, BadSettingsError, SnipError
from .engine.layout import Layout
from .engine.settings import OF_MACHINE, Settings
from .engine.shards import load
from .engine.storage.files import atomic_path, digest_of, read_manifest, write_json
from .engine.storage.locks import lock
from .engine.storage.working_copies import discard


@contextmanager
def noting(layout: Layout, settings: Settings) -> Iterator[None]:
    """Note settings for what is made here, and for all that goes on with it later.

    Where nothing can be made with them, those of before hold again, unless others were noted since.
    """
    path = layout.settings
    with lock(path):
        former = _bytes(path)
    note_settings(layout, settings)
    noted = _bytes(path)
    try:
        yield
    except BadSettingsError:
        with lock(path):
            if _bytes(path) != noted:
                raise
            if former is None:
                discard(path)
            else:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(former)
        raise


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def note_settings(layout: Layout, settings: Settings) -> None:
    """Note settings in the output folder: what is made there later is made alike."""
    noted = noted_settings(layout)
    now = {name: value for name, value in settings.__dict__.items() if name not in OF_MACHINE}
    if layout.settings.exists() and now.items() <= noted.items():
        return
    plain = Settings().__dict__
    # Under its lock: what a run that was killed here left is removed.
    with lock(layout.settings):
        write_json(layout.settings, {n: value for n, value in now.items() if value != plain[n]})


def noted_settings(layout: Layout) -> dict[str, Any]:
    """All settings; where none were noted, what the outputs name, and else the defaults.

    Raises
    ------
    BadInputError
        The file is damaged.
    """
    plain = Settings().__dict__
    if not layout.settings.exists():
        return {**plain, **_of_outputs(layout)}
    try:
        noted = json.loads(layout.settings.read_text())
        return Settings(**{n: _like(v, noted.get(n, v)) for n, v in plain.items()}).__dict__
    except (ValueError, TypeError, AttributeError, BadInputError) as error:
        raise BadInputError(
            f"{layout.settings}: damaged ({error}). Delete it, and give `snip dedup` the settings "
            "of this output folder once more."
        ) from error


def _like(default: Any, value: Any) -> Any:
    """A value of the type of a default; raises TypeError for another one."""
    if type(value) is not type(default) and not (type(default) is float and type(value) is int):
        raise TypeError(f"{value!r} where {default!r} could stand")
    return type(default)(value)


def _of_outputs(layout: Layout) -> dict[str, Any]:
    """What decides which rows go, as the outputs of a notebook name it: groups and pairs."""
    # The station that needs a damaged output reports it.
    with suppress(SnipError, OSError):
        groups = read_manifest(layout.duplicate_groups)
        keys = load(layout).keys if groups else []
        pairs = read_manifest(layout.duplicate_pairs(keys[0])) if keys else None
        if groups is None or pairs is None:
            return {}
        decided = {
            "keep": groups.facts.get("keep"),
            "max_distance": pairs.facts.get("max_distance"),
        }
        # Else pairs were searched with other settings since, and neither is what is wanted now.
        if groups.inputs.get("settings") == digest_of(decided):
            return {**decided, "tier": pairs.facts.get("tier", Settings.tier)}
    return {}
