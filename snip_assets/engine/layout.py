"""Where everything lies in the output folder: the one module that knows paths.

An output is named as its asset is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .errors import BadInputError
from .storage import working_copies

# Stations in the order in which they run; those whose output is one for all shards.
STATIONS = (
    *("metadata", "clip_features", "snip_model", "snip_features", "trained_index"),
    *("index_shards", "snip_index", "duplicate_pairs", "duplicate_groups", "dup_bitmap"),
    *("deduped_metadata", "drop_list"),
)
WHOLE = {"snip_model", "trained_index", "snip_index", "duplicate_groups", "dup_bitmap"}
# A path has one slash left of `s3://`.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def like_url(text: str) -> bool:
    """Whether a text begins as a url does, with one slash or two."""
    return _URL.match(text) is not None


def local(folder: Path) -> Path:
    """A folder that is none of a url.

    Raises
    ------
    BadInputError
        It is one: a folder of that name would be made here.
    """
    if like_url(str(folder)):
        url = re.sub(":/+", "://", str(folder), count=1)
        raise BadInputError(
            f"{url}: a url, where a local or mounted folder is needed (renames, locks, memory "
            "maps). `--out` and SNIP_OUT take urls with two slashes; `snip publish --to URL` "
            "copies a result."
        )
    return folder


@lru_cache(1 << 16)
def _below(root: Path, folder: str, name: str) -> Path:
    """A path, joined once: a run over thousands of shards asks for each a hundred times."""
    return root / folder / name


@dataclass(frozen=True)
class Layout:
    """Paths of all outputs below `root`; nothing here touches the disk.

    Raises
    ------
    BadInputError
        `root` is a url.
    """

    root: Path

    def __post_init__(self) -> None:
        local(self.root)

    def __str__(self) -> str:
        """What a user calls the output folder: of a working copy the url."""
        return working_copies.named(self.root)

    @property
    def registry(self) -> Path:
        """JSON: the shards, their sources, ordinals and row counts."""
        return self.root / "shards.json"

    @property
    def settings(self) -> Path:
        """JSON: settings of the last `snip dedup`, but for defaults and those of the machine."""
        return self.root / "settings.json"

    @property
    def row_offsets(self) -> Path:
        """int64[S + 1], leading 0."""
        return self.root / "row_offsets.npy"

    def metadata(self, key: str) -> Path:
        """Facts about a source metadata shard (its manifest lies beside)."""
        return _below(self.root, "metadata", f"{key}.json")

    def clip_features(self, key: str) -> Path:
        """uint64[n]: xxh3 of each raw row of a source feature shard."""
        return _below(self.root, "clip_features", f"{key}.hashes.npy")

    @property
    def snip_model(self) -> Path:
        """Folder: model.safetensors, model.json."""
        return self.root / "snip_model"

    def snip_features(self, key: str) -> Path:
        """float16[n, dim], unit length."""
        return _below(self.root, "snip_features", f"{key}.npy")

    @property
    def trained_index(self) -> Path:
        """Folder: trained.index (empty FAISS index), calibration.json, axes and code errors."""
        return self.root / "trained_index"

    def index_shards(self, key: str) -> Path:
        """Folder: list_offsets.npy, codes.npy, rows.npy; rows sorted by inverted list."""
        return _below(self.root, "index_shards", key)

    @property
    def snip_index(self) -> Path:
        """Folder: segments.json and a folder for each segment."""
        return self.root / "snip_index"

    def duplicate_pairs(self, key: str) -> Path:
        """Parquet: row, earlier_row, distance."""
        return _below(self.root, "duplicate_pairs", f"{key}.parquet")

    @property
    def duplicate_groups(self) -> Path:
        """Folder: labels.npy, groups.parquet, kept_row.npy, kept_distance.npy."""
        return self.root / "duplicate_groups"

    @property
    def dup_bitmap(self) -> Path:
        """Folder: dup_bitmap.npy (bool[N]) and dup_bitmap.bits (packed)."""
        return self.root / "dup_bitmap"

    def deduped_metadata(self, key: str) -> Path:
        """The kept rows of a metadata shard."""
        return _below(self.root, "deduped_metadata", f"metadata_{key}.parquet")

    def drop_list(self, key: str) -> Path:
        """The dropped rows of a shard with the url that explains each."""
        return _below(self.root, "drop_list", f"{key}.parquet")

    def output(self, asset: str, key: str = "") -> Path:
        """Where the output of an asset lies: that of a shard, where each has one."""
        return self.outputs(asset, [key])[0]

    def outputs(self, asset: str, keys: Iterable[str]) -> list[Path]:
        """Where the outputs of an asset lie: those of some shards, or the one of all shards."""
        found = getattr(self, asset)
        return [found(key) for key in keys] if callable(found) else [found]

    def of_shard(self, key: str) -> list[Path]:
        """All outputs of a shard, the last ones first."""
        return [self.output(name, key) for name in reversed(STATIONS) if name not in WHOLE]

    @property
    def published(self) -> Path:
        """Folder of published bitmap, model, index and row offsets."""
        return self.root / "published"

    @property
    def cache(self) -> Path:
        """Folder of copies of remote features; may be removed at any time."""
        return self.root / "cache"

    def true_pairs(self, seed: int) -> Path:
        """Pairs that exact search has found for the sample of a seed; see `truth`."""
        return self.root / "audit" / f"true_pairs-{seed}.parquet"

    @property
    def precision(self) -> Path:
        """The precision that was measured last, and on what."""
        return self.root / "audit" / "pair_precision.json"

    @property
    def recall(self) -> Path:
        """The recall that was measured last, and on what."""
        return self.root / "audit" / "query_recall.json"

    @property
    def near_misses(self) -> Path:
        """The near misses that the last report showed, and of what; may be removed."""
        return self.root / "audit" / "near_misses.json"

    @property
    def shown_rows(self) -> Path:
        """Texts of the rows that the last report showed; may be removed."""
        return self.root / "audit" / "shown_rows.parquet"

    @property
    def dedup_report(self) -> Path:
        """Folder of the static report."""
        return self.root / "dedup_report"

    @property
    def compared(self) -> Path:
        """Notes of what held against its checksums, see `comparisons`; may be removed."""
        return self.root / ".compared"

    @property
    def dagster_home(self) -> Path:
        """Default DAGSTER_HOME."""
        return self.root / ".dagster"
