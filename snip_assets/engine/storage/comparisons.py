"""Which outputs held against their checksums, and when: what did is not read again for it.

A comparison holds for this process and, noted in a file, for all others for a week: as long as
the files stay the same ones by inode, size, time of the last change of their contents and of the
last change at all. No program can set the last of these, so what was written, replaced or copied
since is compared again. What a disk does to a file by itself (bit rot) is found when the week is
over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LASTS = 7 * 24 * 3600
State = list[list[int]]
# Output -> version and state of its files when they were compared by this process.
_here: dict[Path, tuple[str, State]] = {}
# Root of outputs -> folder for what processes tell each other about them.
_notes: dict[Path, Path] = {}


def note_in(root: Path, folder: Path) -> None:
    """Have comparisons of outputs below `root` noted in a folder, and believed from there."""
    _notes[root] = folder


def state(files: Iterable[Path]) -> State:
    """What tells a file from the one that was compared, of each file, by name."""
    found = [file.stat() for file in sorted(files, key=str)]
    return [[s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in found]


def newer(files: Iterable[Path], manifest: Path) -> bool:
    """Whether a file is newer than its manifest, or something is missing."""
    with suppress(FileNotFoundError):
        sealed = manifest.stat().st_mtime_ns
        return any(file.stat().st_mtime_ns > sealed for file in files)
    return True


def remember(output: Path, version: str, state: State) -> None:
    """Note that the files of an output held; `state` is theirs from before they were compared."""
    _here[output] = version, state
    if (note := _note(output)) is None:
        return
    # One name for all: what a killed process left goes with the next note. A note that is lost,
    # cannot be written, or is of two processes at once costs a comparison.
    temporary = note.with_name(f".tmp-{note.name}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        value = {"version": version, "files": state, "at": time.time()}
        temporary.write_text(json.dumps(value))
        temporary.replace(note)


def held(output: Path, version: str, state: State, *, elsewhere: bool) -> bool:
    """Whether these very files were compared before.

    Parameters
    ----------
    elsewhere
        Believe other processes too, for a week.
    """
    if _here.get(output) == (version, state):
        return True
    note = _note(output) if elsewhere else None
    if note is None:
        return False
    try:
        found = json.loads(note.read_text())
        same = (found["version"], found["files"]) == (version, state)
        return same and 0 <= time.time() - found["at"] < LASTS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _note(output: Path) -> Path | None:
    for root, folder in _notes.items():
        if root in output.parents:
            return folder / f"{output.relative_to(root)}.json"
    return None
