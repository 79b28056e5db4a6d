"""Sources that lie elsewhere now: the registry is told where.

Files that were moved, or copied with their times, are what they were; those with new times are read
again by the next run, to the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import apart
from .errors import BadInputError
from .kernels.row_hashes import row_hashes
from .layout import Layout
from .progress import track
from .shards import Registry, Shard, inspect, load, save
from .sources import Source
from .stations.base import source_state
from .storage.files import open_npy, read_manifest
from .storage.locks import lock
from .storage.remote_files import absolute, is_remote
from .storage.working_copies import here

# Of a shard, at the most; the first and the last among them.
COMPARED_ROWS = 256


def move(layout: Layout, source: Source) -> Registry:
    """Register other folders as the source, if the same shards lie there.

    Each shard must have its rows, dimension and dtype, and metadata of the same size. Rows here and
    there are compared by their hashes, where these are known and the folder is local.

    Returns
    -------
    The registry as it is now.

    Raises
    ------
    BadInputError
        A shard is missing there, or is another one.
    """
    source = Source(absolute(source.features), absolute(source.metadata))
    apart.from_sources(layout.root, source)
    for folder in (source.features, source.metadata):
        if not is_remote(folder) and not folder.is_dir():
            raise BadInputError(f"{folder}: no such folder.")
    with lock(layout.registry, layout.row_offsets):
        shards = load(layout).shards
        for shard in track(shards, "compare", len(shards), "shards"):
            now = inspect(source, shard.key)
            if (now.rows, *now.kind) != (shard.rows, *shard.kind):
                raise _other(now.features, f"is not the shard {shard.key} that is registered")
            _require_same_rows(layout, shard, now.features)
            described = read_manifest(layout.metadata(shard.key))
            size = int(source_state(now.metadata).partition("-")[0])
            if described is not None and described.facts.get("bytes", size) != size:
                raise _other(now.metadata, f"is not the metadata registered for shard {shard.key}")
        save(layout, Registry(source, shards))
    return load(layout)


def _require_same_rows(layout: Layout, shard: Shard, features: Path) -> None:
    path = here(layout.clip_features(shard.key))
    if is_remote(features) or not path.exists() or not shard.rows:
        return
    rows = np.unique(np.linspace(0, shard.rows - 1, COMPARED_ROWS).astype(np.int64))
    now = row_hashes(np.ascontiguousarray(open_npy(features)[rows]))
    if (other := rows[now != open_npy(path)[rows]]).size:
        raise _other(features, f"row {other[0]} is not that of the registered shard {shard.key}")


def _other(path: Path, why: str) -> BadInputError:
    return BadInputError(
        f"{path}: {why}: this is another data set, or has changed. Give the folders that hold the "
        "same files as before; for another data set choose another output folder."
    )
