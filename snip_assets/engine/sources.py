"""What lies in the source folders, by name: the layout of clip-retrieval."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .errors import BadInputError
from .storage.remote_files import is_remote, remote_names

FEATURES_PATTERN = "img_emb_{key}.npy"
TEXT_PATTERN = "text_emb_{key}.npy"
METADATA_PATTERN = "metadata_{key}.parquet"
_FEATURES_NAME = re.compile(r"img_emb_(.+)\.npy")
_METADATA_NAME = re.compile(r"metadata_(.+)\.parquet")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Endings of what lies beside outputs that are named by their key alone.
_ENDINGS = (".manifest.json", ".manifest", ".checkpoint")


@dataclass(frozen=True)
class Source:
    """Where the data lies: folders, or urls of such, in the layout of clip-retrieval."""

    features: Path
    metadata: Path


def discover(source: Source, registered: Collection[str] = ()) -> list[str]:
    """Keys of the shards in the source folders, in `natural` order.

    Parameters
    ----------
    registered
        Keys that must be there: what is told about them differs.

    Raises
    ------
    BadInputError
        A folder is missing or empty, a file has no partner, or a key is not a plain name.
    """
    for folder in (source.features, source.metadata):
        if not is_remote(folder) and folder.is_file():
            raise BadInputError(f"{folder}: is a file; give the folder that it is in.")
        if not is_remote(folder) and not folder.is_dir():
            moved = (
                "; mount it or put it back. If it was moved, say where to with `snip shards move`"
            )
            raise BadInputError(f"{folder}: no such folder{moved if registered else ''}.")
    features = _keys(source.features, _FEATURES_NAME)
    metadata = _keys(source.metadata, _METADATA_NAME)
    if not features:
        raise BadInputError(f"{source.features}: no file named {FEATURES_PATTERN} in this folder.")
    if alone := sorted(features - metadata):
        name = METADATA_PATTERN.format(key=alone[0])
        raise BadInputError(
            f"shard {alone[0]}: {source.metadata / name} is missing (features without "
            f"metadata: {len(alone)}); {_cure(alone[0], registered, 'features')}."
        )
    if alone := sorted(metadata - features):
        name = FEATURES_PATTERN.format(key=alone[0])
        raise BadInputError(
            f"shard {alone[0]}: {source.features / name} is missing (metadata without "
            f"features: {len(alone)}); {_cure(alone[0], registered, 'metadata')}."
        )
    return sorted(features, key=natural)


def natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """What names are sorted by as people do it: numbers in them by their value, and before words.

    So shards are in the same order by their keys and by their files, which begin with a word.
    """
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(False, int(p), "") if p.isdecimal() else (True, 0, p) for p in parts], name


def _cure(key: str, registered: Collection[str], there: str) -> str:
    return "put it back" if key in registered else f"add the file or move the {there} away"


def _keys(folder: Path, pattern: re.Pattern[str]) -> set[str]:
    try:
        remote = is_remote(folder)
        names = remote_names(folder) if remote else [p.name for p in folder.iterdir()]
    except PermissionError as error:
        raise BadInputError(f"{folder}: permission denied; make it readable.") from error
    keys = {m.group(1) for n in names if (m := pattern.fullmatch(n))}
    for key in keys:
        if not is_plain(key):
            raise BadInputError(
                f"{folder}: the shard key {key[:120]!r} is not a plain name (letters, digits, "
                f"'.', '_', '-', at most 100; no {' or '.join(_ENDINGS)} at its end); rename it."
            )
    return keys


def is_plain(key: str) -> bool:
    """Whether a shard key can be part of any path or page without harm."""
    return _KEY.fullmatch(key) is not None and not key.endswith(_ENDINGS)
