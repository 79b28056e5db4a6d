"""A run: an output folder and the settings, with what the stations share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast, get_args

import numpy as np

from . import choices, copies, keep_rule, shards, threads
from .axes import Axes
from .calibration import Calibration
from .code_distance import CodeErrors, CodeScale
from .codec import CODECS, require_fits
from .coded_rows import CodedRows
from .compress import device_of
from .errors import BadInputError, StaleOutputError
from .features import Features
from .index import IndexedShard, SnipIndex
from .layout import Layout, local
from .list_queries import CandidateRule
from .pair_files import Copies
from .pairs import Join
from .query_rows import QueryShard
from .settings import Settings
from .shards import Registry, Shard
from .storage import comparisons, remote_files
from .storage.files import CheckLevel, digest_of, open_npy, read_manifest, require
from .trained import TrainedIndex
from .verify import Verifier

TRAINING = ("dim", "hidden", "depth", "temperature", "batch", "steps", "learning_rate", "patience")
MODEL_SETTINGS = ("model", *TRAINING, "train_rows", "pca_below", "max_distance", "seed")
INDEX_SETTINGS = ("codec", "lists", "max_probes", "target_recall", "max_distance", "seed")
PAIR_SETTINGS = ("max_distance", "max_partners", "tier")
TIERS = ("raw", "snip", "codes")
CHECKS: tuple[CheckLevel, ...] = get_args(CheckLevel)
PICTURES = ("all", "local", "none")
# What the output of a station must agree with, beside its settings.
MADE_FROM = {
    "snip_features": ("snip_model", "clip_features"),
    "trained_index": ("snip_model",),
    "index_shards": ("trained_index", "snip_features"),
}


def use_cache(layout: Layout, cache: str, cache_gb: float) -> None:
    """Set where this process keeps copies of remote features; see `Settings`."""
    folder = local(Path(cache)) if cache else layout.cache
    remote_files.use(remote_files.Cache(folder, int(cache_gb * 1e9)))


@dataclass
class Run:
    """What every station takes.

    Making one also sets where this process keeps copies of remote features, for all runs in it:
    what is read stays the same (a copy is known by its url and state), but the place and the limit
    are those of the run that was made last.

    Attributes
    ----------
    layout
        The output folder.
    settings
        See `Settings`.
    """

    layout: Layout
    settings: Settings

    def __post_init__(self) -> None:
        self.layout = Layout(Path(self.layout.root))
        use_cache(self.layout, self.settings.cache, self.settings.cache_gb)
        comparisons.note_in(self.layout.root, self.layout.compared)
        keep_rule.parse(self.settings.keep)
        codecs = ("codec", (choices.AUTO, *CODECS))
        for name, known in (codecs, ("tier", TIERS), ("check", CHECKS), ("pictures", PICTURES)):
            value = getattr(self.settings, name)
            if value not in known:
                raise BadInputError(f"{name} {value!r} is unknown; one of {', '.join(known)}.")
        if self.settings.model == "train":
            # `auto` takes PQ8 or PQ16: what the latter divides, the former does.
            codec = "PQ16" if self.settings.codec == choices.AUTO else self.settings.codec
            require_fits(codec, self.settings.dim)

    @cached_property
    def registry(self) -> Registry:
        """The registered shards."""
        registry = shards.load(self.layout)
        if not registry.shards:
            raise StaleOutputError(f"{self.layout}: no shards; run `snip shards sync`.")
        return registry

    def digest(self, names: tuple[str, ...]) -> str:
        """Digest of some settings."""
        values = asdict(self.settings)
        return digest_of({name: values[name] for name in names})

    @property
    def check(self) -> CheckLevel:
        """How thoroughly outputs are checked before use."""
        return cast(CheckLevel, self.settings.check)

    def version(self, station: str, key: str = "") -> str:
        """Version of an upstream output that must be there, whole, and made from what is there.

        Raises
        ------
        StaleOutputError
            It is missing, damaged, or was made from an output that has been made again since.
        """
        name = f"{station} {key}".strip()
        manifest = require(self.layout.output(station, key), name, self.check)
        for before in MADE_FROM.get(station, ()):
            now = read_manifest(self.layout.output(before, key))
            if now is not None and manifest.inputs.get(before) != now.version:
                raise StaleOutputError(
                    f"{name} was made from another {before} than there is now; materialise {name} "
                    "again (`snip dedup` makes all that is stale)."
                )
        return manifest.version

    def require_shards(self, station: str, shards: list[Shard]) -> None:
        """Raise unless a station's outputs for these shards are as `version` asks."""

        def require_one(shard: Shard) -> None:
            self.version(station, shard.key)

        # What is read for its checksum is read by all cores.
        for _ in threads.ordered_map(require_one, shards, self.settings.workers):
            pass

    def hashed(self) -> list[Shard]:
        """Shards whose rows are checked and hashed."""
        return [s for s in self.registry.shards if read_manifest(self.layout.clip_features(s.key))]

    def hashes(self, rows: np.ndarray) -> np.ndarray:
        """uint64[n]: hashes of rows by row id."""
        return self._hashes().take(rows)

    def copies_by_hash(self) -> Copies | None:
        """Which pairs at distance 0 are exact copies; None unless all rows are hashed."""
        if len(self.hashed()) < len(self.registry.shards):
            return None
        hashes = self._hashes()
        return lambda row, earlier_row: hashes.take(row) == hashes.take(earlier_row)

    def _hashes(self) -> Features:
        # Opened anew: a shard that was replaced since has others.
        paths = [self.layout.clip_features(key) for key in self.registry.keys]
        return Features(paths, self.registry.offsets)

    def exact_copies(
        self, last: int, fresh: Collection[str] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Later copies and their first copies, confirmed, among shards up to ordinal `last`.

        Parameters
        ----------
        fresh
            Keys of the shards whose later copies are wanted; default: all.

        Yields
        ------
        rows, first : int64[m], as `copies.copies` does
        """
        some = [s for s in self.hashed() if s.ordinal <= last]
        wanted = np.array([fresh is None or s.key in fresh for s in some], bool)
        if not wanted.any():
            return
        starts = np.array([s.start for s in some], np.int64)
        files = [self.layout.clip_features(s.key) for s in some]
        raw = shards.raw_features(self.registry) if self.settings.tier == "raw" else None
        for later, earlier in copies.copies(files, starts, wanted, self.settings.workers):
            if raw is not None:
                equal = copies.confirmed(raw, later, earlier, self.settings.workers)
                later, earlier = later[equal], earlier[equal]
            yield later, earlier

    def first_copies(self, rows: np.ndarray, last: int) -> np.ndarray:
        """int64[n]: first copy of each row among shards up to ordinal `last`, or the row itself.

        Parameters
        ----------
        rows
            int64[n], row ids.
        """
        names, back = np.unique(rows, return_inverse=True)
        some = [s for s in self.hashed() if s.ordinal <= last]
        files = [self.layout.clip_features(s.key) for s in some]
        starts = np.array([s.start for s in some], np.int64)
        first = copies.first_of(files, starts, self.hashes(names), self.settings.workers)
        other = np.flatnonzero(first != names)
        raw = shards.raw_features(self.registry)
        equal = copies.confirmed(raw, names[other], first[other], self.settings.workers)
        first[other[~equal]] = names[other[~equal]]
        return first[back]

    def mark_copies(self, keys: list[str], marked: np.ndarray) -> None:
        """Mark later exact copies in some shards, as their pairs tell, in bool[N]."""
        files = [self.layout.duplicate_pairs(key) for key in keys]
        for rows in copies.of_pairs(files, self.registry.rows, self._hashes()):
            marked[rows] = True

    def calibration(self) -> Calibration:
        """What calibration chose."""
        path = self.layout.trained_index / "calibration.json"
        try:
            return Calibration(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise StaleOutputError(f"{path}: missing or damaged; train the index again.") from error

    def trained(self) -> TrainedIndex:
        """The trained index."""
        return TrainedIndex.load(self.layout.trained_index / "trained.index")

    def axes(self) -> Axes:
        """Leading axes of the residuals."""
        axes = np.asarray(open_npy(self.layout.trained_index / "axes.npy"))
        return Axes(axes, self.calibration().axis_scale)

    def _code_errors(self, power: float) -> CodeErrors:
        if power == 0:
            return CodeErrors.none()
        path = self.layout.trained_index / "code_errors.npy"
        try:
            return CodeErrors(np.array(open_npy(path)))
        except BadInputError as error:
            raise StaleOutputError(
                f"{path}: missing or damaged, and the tier codes needs it; train the index again."
            ) from error

    def rows_version(self, key: str) -> str:
        """Changes when another row lies in a shard; empty while that is not read."""
        manifest = read_manifest(self.layout.clip_features(key))
        return manifest.version if manifest is not None else ""

    def indexed(self) -> list[IndexedShard]:
        """Index shards that are materialised, by ordinal."""
        found = []
        for shard in self.registry.shards:
            folder = self.layout.index_shards(shard.key)
            if (manifest := read_manifest(folder)) is not None:
                version = manifest.version
                found.append(IndexedShard(shard.key, shard.start, shard.rows, folder, version))
        return found

    def join(self, is_copy: np.ndarray) -> Join:
        """The join, by the tier of the settings.

        Parameters
        ----------
        is_copy
            bool[N]: the later exact copies, which are left out.
        """
        calibration, settings = self.calibration(), self.settings
        index = SnipIndex.open(self.layout)
        snip = shards.snip_features(self.layout, self.registry)
        codes = None
        slack, short = calibration.slack, calibration.short_slack
        if settings.tier == "codes":
            # Equal codes alone where it is 0.
            limit, power = max(calibration.code_max_distance, 1e-9), calibration.code_power
            scale = CodeScale(self._code_errors(power), power, settings.max_distance / limit)
            codes = CodedRows(self.layout, self.registry, index.trained, scale)
            slack = scale.widest(settings.max_distance)
            # A distance in a subspace never exceeds the whole one, but for rounding to steps.
            short = 1.05 * slack
            verifier = Verifier(None, None, settings.max_distance, np.inf, codes)
        elif settings.tier == "snip":
            verifier = Verifier(None, snip, settings.max_distance, calibration.snip_max_distance)
        else:
            raw = shards.raw_features(self.registry)
            verifier = Verifier(raw, snip, settings.max_distance, calibration.snip_limit)
        return Join(
            index=index,
            rule=CandidateRule(slack, short, self.axes()),
            verifier=verifier,
            queries=snip if codes is None else codes,
            exact_queries=codes is None,
            is_copy=is_copy,
            max_partners=settings.max_partners,
            device=device_of(replace(settings, device=choices.join_device(settings))),
        )

    def query_shard(self, shard: Shard) -> QueryShard:
        """A shard as the join reads it."""
        return QueryShard(shard.start, self.layout.index_shards(shard.key))
