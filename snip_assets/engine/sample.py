"""A sample of rows over all shards: seeded, read in order of place, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import choices
from .errors import BadInputError
from .features import Features, as_float32
from .settings import Settings
from .shards import Registry, Shard
from .sources import TEXT_PATTERN
from .storage.files import digest_of, open_npy

_TOP = (1 << 64) - 1
# 2^64 over the golden ratio.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def most_rows(features: Features, settings: Settings, text: Features | None = None) -> int:
    """Rows to sample: `settings.train_rows`, and at most a quarter of `settings.memory_gb`."""
    if len(features) == 0:
        raise BadInputError("there are no rows to train on; register a shard with rows.")
    first = features.shard(int(np.flatnonzero(np.diff(features.offsets))[0]))
    size = first.shape[1] * first.dtype.itemsize * (1 if text is None else 2)
    return choices.net_rows(size, settings)


def sample_rows(rows: int, most: int, seed: int) -> np.ndarray:
    """At most `most` row ids of 0 .. rows-1, int64, ascending, drawn without replacement."""
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.choice(rows, most, replace=False, shuffle=False)).astype(np.int64)


def random_shards(ready: Sequence[Shard], rows: int, purpose: str, seed: int) -> list[Shard]:
    """Random shards of at least so many rows, by ordinal; mostly the same when others arrive.

    All of them where they have fewer; others for another purpose.
    """
    some: list[Shard] = []
    for shard in sorted(ready, key=lambda s: digest_of([purpose, seed, s.key])):
        if rows_of(some) >= rows:
            break
        some.append(shard)
    return sorted(some, key=lambda s: s.ordinal)


def rows_of(some: Sequence[Shard]) -> int:
    """Rows of some shards."""
    return sum(shard.rows for shard in some)


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64[n]: a hash of each number, in which equal ones are equal (the end of `splitmix64`).

    Parameters
    ----------
    values
        uint64[n].
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def splitmix64(values: np.ndarray) -> np.ndarray:
    """uint64[n]: numbers scattered at random, each by itself alone.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Parameters
    ----------
    values
        uint64[n].
    """
    return mixed(values + GOLDEN)


def drawn(rows: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Which rows, or labels, a sample of a share of all of them holds: bool[n].

    Parameters
    ----------
    rows
        [n], row ids.
    """
    # Another seed must not be another order of the same tickets.
    spread = int(digest_of(["tickets", seed])[:16], 16)
    tickets = splitmix64(rows.astype(np.uint64) ^ np.uint64(spread))
    return tickets <= np.uint64(min(_TOP, int(share * 2.0**64)))


def read_rows(features: Features, rows: np.ndarray) -> np.ndarray:
    """Sampled rows, in their own dtype.

    Raises
    ------
    BadInputError
        One is zero, NaN or infinite: the message names file and row.
    """
    taken = features.take(rows)
    for start in range(0, len(taken), 8192):
        lengths = np.linalg.norm(as_float32(taken[start : start + 8192]), axis=1)
        if (bad := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))).size:
            row = int(rows[start + bad[0]])
            shard = int(np.searchsorted(features.offsets, row, "right") - 1)
            what = "is all zeros" if lengths[bad[0]] == 0 else "holds NaN or infinity"
            raise BadInputError(
                f"{features.paths[shard]}: row {row - int(features.offsets[shard])} {what}; "
                "compute its feature again, or take the row out of features and metadata."
            )
    return taken


def text_features(registry: Registry) -> Features | None:
    """Text features of a registry, None unless every shard has them.

    `text_emb_{key}.npy` lies beside the image features, or in a folder `text_emb` beside theirs.

    Raises
    ------
    BadInputError
        One has other rows or another dimension than the image features of its shard.
    """
    folder, paths = registry.source.features, []
    for shard in registry.shards:
        name = TEXT_PATTERN.format(key=shard.key)
        found = [p for p in (folder / name, folder.parent / "text_emb" / name) if p.is_file()]
        if not found:
            return None
        if (shape := open_npy(found[0]).shape) != (shard.rows, shard.dim):
            raise BadInputError(
                f"{found[0]}: shape {shape}, but {shard.features} is {(shard.rows, shard.dim)}; "
                "row i of one must be row i of the other, from one model; write them again or "
                "move the text features away."
            )
        paths.append(found[0])
    return Features(paths, registry.offsets) if paths else None
