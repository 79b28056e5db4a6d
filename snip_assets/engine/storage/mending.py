"""Files of outputs that somebody removed from a url, or cut, sent there again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import transfers
from .files import manifest_path
from .locks import unless_locked
from .sent import Notes, Sent, state


def mend(url: Any, notes: Notes, outputs: Sequence[Path]) -> list[str]:
    """Send again what lies in a working copy, and is absent or of another size at its url.

    Where the manifest there is not the one that was sent, another machine has been there, or
    somebody withdrew the output: the next look takes that.

    Parameters
    ----------
    outputs
        In the working copy, each whole.

    Returns
    -------
    Paths below the url.
    """
    root = notes.root
    there, known = transfers.listed(url, deep=False), notes.all()
    for top in {output.relative_to(root).parts[0] for output in outputs}:
        found = transfers.listed(url / top, deep=True)
        there |= {f"{top}/{name}": state for name, state in found.items()}
    again: list[str] = []
    for output in outputs:
        manifest = manifest_path(output)
        name = manifest.relative_to(root).as_posix()
        sent = known.get(name)
        if sent is None or there.get(name) != sent.remote:
            continue
        with unless_locked(output) as free:
            # What is made anew is sent with its manifest.
            if free and state(manifest) == sent.here:
                again += _mended(url, root, output, sent, there)
    return again


def _mended(url: Any, root: Path, output: Path, sent: Sent, there: dict[str, str]) -> list[str]:
    again = []
    for member, entry in sent.files.items():
        path = output.parent / member
        below = path.relative_to(root).as_posix()
        size = there.get(below, "").partition("-")[0]
        if size != str(entry["bytes"]) and path.exists():
            transfers.to_remote_alone(path, url / below)
            again.append(below)
    return again
