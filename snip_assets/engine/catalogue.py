"""What others have published, by name: read from `catalogue.json` or from a file of one's own.

Adding a publication is adding an entry to that file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .contents import format_of
from .download import Wanted
from .errors import BadInputError
from .storage.locations import drive_id, shown

OWN = Path(__file__).with_name("catalogue.json")
FORMATS = ("npy", "bits", "torch", "faiss", "safetensors", "parquet", "any")
_CHECKSUM = re.compile(r"sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}")
KINDS = ("bitmap", "model", "index", "offsets", "labels")
# What a file of a kind may be.
FORMATS_OF = {
    "bitmap": ("npy", "bits"),
    "model": ("safetensors", "torch"),
    "index": ("faiss",),
    "offsets": ("npy",),
}


@dataclass(frozen=True)
class Publication:
    """A published file.

    Attributes
    ----------
    name, kind, note
        What it is called, what it is (one of `KINDS`), and a sentence about it.
    file
        The name it gets locally.
    location
        Where it is; see `fetch`.
    format
        npy, torch, faiss, safetensors, parquet.
    bytes, checksum
        Its size and `sha256:HEX` where known.
    """

    name: str
    kind: str
    file: str
    location: str
    format: str
    bytes: int | None = None
    checksum: str | None = None
    note: str = ""

    def wanted(self, folder: Path, location: str | None = None) -> Wanted:
        """What to fetch into `folder`, from its own place or from `location`.

        Another location may hold another format: then its name and format count, and the size
        and checksum of the catalogue do not.
        """
        own = None if self.format == "any" else self.format
        if location is None:
            target = folder / self.file
            return Wanted(self.location, target, own, self.bytes, self.checksum)
        name = "" if drive_id(location) else Path(shown(location)).name
        if (form := format_of(name)) is None:
            name, form = self.file, own
        elif self.kind in FORMATS_OF and form not in FORMATS_OF[self.kind]:
            raise BadInputError(
                f"{shown(location)}: a file of the format {form} is no {self.kind} "
                f"({', '.join(FORMATS_OF[self.kind])})."
            )
        return Wanted(location, folder / name, form)


@dataclass(frozen=True)
class DataSet:
    """A data set whose metadata is published: a template, its shards, the names that go with it."""

    name: str
    metadata: str
    shards: int
    bitmap: str
    offsets: str
    note: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All publications and data sets of a catalogue file, in its order."""

    files: tuple[Publication, ...]
    data_sets: tuple[DataSet, ...]

    def __getitem__(self, name: str) -> Publication:
        """The publication with this name, or the first of this kind."""
        for file in self.files:
            if name in (file.name, file.kind):
                return file
        known = ", ".join(f.name for f in self.files)
        raise BadInputError(f"nothing is published under {name!r}; the catalogue has: {known}.")

    def data_set(self, name: str) -> DataSet:
        """The data set with this name."""
        for found in self.data_sets:
            if found.name == name:
                return found
        known = ", ".join(d.name for d in self.data_sets)
        raise BadInputError(f"no data set {name!r} in the catalogue; it has: {known}.")


def load(path: Path = OWN) -> Catalogue:
    """Read a catalogue file.

    Raises
    ------
    BadInputError
        It is missing, no JSON, or an entry lacks a field, has one too many or one that cannot be.
    """
    try:
        value = json.loads(path.read_text())
        files = tuple(_entry(Publication, v, path) for v in value.get("files", []))
        data_sets = tuple(_entry(DataSet, v, path) for v in value.get("data_sets", []))
    except (OSError, ValueError, AttributeError) as error:
        raise BadInputError(f"{path}: cannot be read as a catalogue ({error}).") from error
    for file in files:
        if reason := _wrong(file):
            raise BadInputError(f"{path}: {file.name}: {reason}.")
    return Catalogue(files, data_sets)


def _wrong(file: Publication) -> str:
    """What cannot be in an entry, empty if all can."""
    if file.kind not in KINDS:
        return f"kind {file.kind!r} is none of {KINDS}"
    if file.format not in FORMATS:
        return f"format {file.format!r} is none of {FORMATS}"
    # It is written below the folder that the user names, and nowhere else.
    if Path(file.file).name != file.file or file.file in ("", ".", ".."):
        return f"file {file.file!r} is no plain name"
    if file.checksum is not None and not _CHECKSUM.fullmatch(file.checksum):
        return f"checksum {file.checksum!r}; expected sha256:HEX or md5:HEX"
    return ""


def _entry(kind: type, value: dict[str, Any], path: Path) -> Any:
    known = {f.name for f in fields(kind)}
    texts = {f.name for f in fields(kind) if f.name not in ("bytes", "shards", "checksum")}
    if other := sorted(n for n in texts & set(value) if not isinstance(value[n], str)):
        raise BadInputError(f"{path}: {value.get('name')}: {other[0]} is no text.")
    if unknown := sorted(set(value) - known):
        raise BadInputError(f"{path}: an entry has unknown fields {unknown}; known: {known}.")
    try:
        return kind(**value)
    except TypeError as error:
        raise BadInputError(f"{path}: {value.get('name')}: {error}.") from error
