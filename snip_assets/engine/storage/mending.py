"""Files of outputs that somebody removed from a url, or cut, sent there again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import transfers
from .files import manifest_path
from .sent import Notes


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
    again = []
    for output in outputs:
        name = manifest_path(output).relative_to(root).as_posix()
        sent = known.get(name)
        if sent is None or there.get(name) != sent.remote:
            continue
        for member, entry in sent.files.items():
            path = output.parent / member
            below = path.relative_to(root).as_posix()
            size = there.get(below, "").partition("-")[0]
            if size != str(entry["bytes"]) and path.exists():
                transfers.to_remote_alone(path, url / below)
                again.append(below)
    return again
