"""Which files of an output folder a working copy and its url share."""

from __future__ import annotations

from dataclasses import dataclass

from .files import MANIFEST

# Ends the name of a file of this machine that was set aside for another machine's.
UNSENT = ".unsent"


@dataclass(frozen=True)
class Parts:
    """What belongs to an output folder; all else in it, and at the url, is left alone.

    Attributes
    ----------
    files
        Names of files that have no manifest; they are sent as they are.
    plain
        Names of folders of such files.
    sealed
        Names of outputs with a manifest, or of folders that hold them.
    at_once
        Those of `sealed` that come with their manifests; others come when they are opened.
    always
        One of `files` that no change removes; empty: there is none.
    """

    files: frozenset[str]
    plain: frozenset[str]
    sealed: frozenset[str]
    at_once: frozenset[str]
    always: str = ""

    def holds(self, name: str) -> bool:
        """Whether a file, by its path in the folder, is sent by itself: not as part of another."""
        top, _, below = name.partition("/")
        if name[0] == "." or "/." in name or name.endswith(UNSENT):
            return False
        if below:
            return top in self.plain or (top in self.sealed and below.endswith(MANIFEST))
        return top in self.files or top.removesuffix(MANIFEST) in self.sealed - {top}

    def comes_at_once(self, name: str) -> bool:
        """Whether what a manifest names comes with it."""
        return name.partition("/")[0].removesuffix(MANIFEST) in self.at_once
