"""What has arrived in the source folders: complete, still growing, or in disorder.

Pure functions over two listings, so that they can be tested without a clock or a daemon. A shard
is complete when both its files have been the same for two looks, or when its marker says so.
Nothing here writes; `admit` registers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import shards, sources
from .errors import BadInputError, SnipError
from .layout import Layout
from .shards import Shard, Source
from .storage.files import read_manifest
from .storage.remote_files import is_remote, remote_states

State = tuple[int, int, int, int]
_TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".incomplete", ".crdownload")
# Looks after which a file without its partner, or an empty one, is reported.
PATIENCE = 10
# Size and time of a file of a registered shard that was listed by its name alone.
UNSEEN = (-2, -2)


@dataclass(frozen=True)
class Listing:
    """What lies in the source folders at one moment.

    Attributes
    ----------
    features, metadata
        Key -> (bytes, time of the last change in nanoseconds).
    names
        Names of all other files, among them markers.
    """

    features: dict[str, tuple[int, int]]
    metadata: dict[str, tuple[int, int]]
    names: frozenset[str] = frozenset()

    def state(self, key: str) -> State | None:
        """Sizes and times of both files; None while one is missing."""
        if key not in self.features or key not in self.metadata:
            return None
        return (*self.features[key], *self.metadata[key])


@dataclass
class Memory:
    """What a look must know of the looks before it (a sensor's cursor).

    Attributes
    ----------
    waiting
        Key -> sizes and times (-1 for a missing file), and for how many looks they were so.
    refused
        Key -> the state that was refused, and why.
    reported
        Digest of the problems that were reported last.
    reported_on
        When the metadata was materialised last before that report (a Unix time; 0: never).
    held
        For how many looks new shards were held back, because others were still growing.
    planned
        Runs that follow each other: run key, shards, and whether to end with their SNIP features.
    """

    waiting: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, list[Any]] = field(default_factory=dict)
    reported: str = ""
    reported_on: float = 0.0
    held: int = 0
    planned: list[tuple[str, list[str], bool]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str | None) -> Memory:
        """From a cursor; an unreadable one is a blank one: it costs a look, and loses nothing."""
        try:
            return cls(**json.loads(text)) if text else cls()
        except (ValueError, TypeError):
            return cls()

    def to_json(self) -> str:
        """As a cursor."""
        return json.dumps(self.__dict__, sort_keys=True)


@dataclass(frozen=True)
class Look:
    """The result of one look.

    Attributes
    ----------
    complete
        Keys of new shards that may be registered, sorted.
    growing
        Keys that are not complete yet.
    problems
        Key -> what is wrong, in words.
    memory
        For the next look.
    now
        What was seen.
    """

    complete: list[str]
    growing: list[str]
    problems: dict[str, str]
    memory: Memory
    now: Listing

    def told(self) -> list[str]:
        """A line for each problem; it names its shard."""
        return [why if key in why else f"{key}: {why}" for key, why in self.problems.items()]


def listing(source: Source, registered: Collection[str] = (), *, thorough: bool = False) -> Listing:
    """List both folders.

    Parameters
    ----------
    registered
        Keys of the registered shards.
    thorough
        Where a listing gives names alone (http), ask for the files of registered shards too, one
        by one.

    Raises
    ------
    BadInputError
        A folder cannot be read; or it is empty though shards of it are registered: a folder that
        is not mounted must not look like one whose shards have disappeared.
    """
    known = frozenset() if thorough else frozenset(registered)
    features, others = _scan(source.features, "img_emb_", ".npy", known)
    metadata, more = _scan(source.metadata, "metadata_", ".parquet", known)
    for folder, found in ((source.features, features), (source.metadata, metadata)):
        if registered and not found:
            raise BadInputError(
                f"{folder}: empty, though {len(registered)} shards of it are registered. Is the "
                "disk mounted? Nothing was changed."
            )
    return Listing(features, metadata, frozenset(others | more))


def _scan(
    folder: Path, prefix: str, suffix: str, known: frozenset[str]
) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Key -> size and time of the files of shards, and the names of all others."""
    found: dict[str, tuple[int, int]] = {}
    others: set[str] = set()
    seen = _remote_files(folder, prefix, suffix, known) if is_remote(folder) else _files(folder)
    for name, state in seen:
        key = name[len(prefix) : -len(suffix)]
        if not (name.startswith(prefix) and name.endswith(suffix) and key):
            others.add(name)
        elif not (key.startswith(".") or key.endswith(_TEMPORARY)):
            found[key] = state
    return found, others


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                yield entry.name, (status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise BadInputError(f"{folder}: cannot be listed ({error.strerror}).") from error


def _remote_files(
    folder: Path, prefix: str, suffix: str, known: frozenset[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """The same of a url; what a store tells of a file's contents stands for the time."""

    def passed_over(name: str) -> bool:
        mine = name.startswith(prefix) and name.endswith(suffix)
        return not mine or name[len(prefix) : -len(suffix)] in known

    for name, state in remote_states(folder, passed_over):
        size, _, stamp = (state or "").partition("-")
        yield name, (int(size), int(stamp)) if state else UNSEEN


def look(
    now: Listing, registered: Mapping[str, State | None], before: Memory, marker: str = ""
) -> Look:
    """Judge a listing against what is registered and the look before.

    Parameters
    ----------
    registered
        Key -> state of its files when they were read; None: not known.
    marker
        Name of a file that says a shard (`{key}` in the name) or the whole folder is complete;
        empty: a shard is complete when two looks see the same sizes and times.
    """
    problems = _disorder(now, registered)
    memory = replace(before, waiting={}, refused={})
    complete, growing = [], []
    gone = {state: key for key, state in registered.items() if state and now.state(key) is None}
    new = (now.features.keys() | now.metadata.keys()) - registered.keys()
    for key in sorted(new, key=sources.natural):
        if not sources.is_plain(key):
            problems[key[:120]] = (
                f"the shard key {key[:120]!r} is not a plain name (letters, digits, '.', '_', "
                "'-', at most 100); rename its files."
            )
            continue
        if former_key := gone.get(now.state(key) or (-1,) * 4):
            # Registered, it could not be taken back, and would be missed once it is named right.
            problems[key] = (
                f"its files are those of the registered shard {former_key}, renamed; give them "
                "their former names back."
            )
            continue
        state = [*now.features.get(key, (-1, -1)), *now.metadata.get(key, (-1, -1))]
        old = before.refused.get(key)
        if old is not None and old[0] == state:
            memory.refused[key] = old
            problems[key] = old[1]
            continue
        former = before.waiting.get(key, [])
        steady = former[4] + 1 if former[:4] == state else 0
        there = state[0] > 0 and state[2] > 0
        if there and (marker.replace("{key}", key) in now.names if marker else steady > 0):
            complete.append(key)
            continue
        memory.waiting[key] = [*state, steady]
        if not there and steady >= PATIENCE:
            problems[key] = _incomplete(key, state)
        # Others do not wait for a file without its partner that does not grow.
        elif there or not steady:
            growing.append(key)
    return Look(complete, growing, problems, memory, now)


def _incomplete(key: str, state: list[int]) -> str:
    features = shards.FEATURES_PATTERN.format(key=key)
    metadata = shards.METADATA_PATTERN.format(key=key)
    for size, name, other in ((state[0], features, metadata), (state[2], metadata, features)):
        if size < 0:
            return f"{name} is missing, though {other} is there; add it or move the other away."
        if size == 0:
            return f"{name} is empty; write it again."
    return f"{features}, {metadata}: unsteady."


def _disorder(now: Listing, registered: Mapping[str, State | None]) -> dict[str, str]:
    """Registered shards that have changed or disappeared."""
    problems = {}
    for key, state in registered.items():
        seen = now.state(key)
        if seen is None:
            gone = _names(key, key not in now.features, key not in now.metadata)
            problems[key] = (
                f"{gone}: disappeared, though registered. Put it back: its outputs stay as they "
                "are, but new shards are not compared until then."
            )
        elif state is not None and (changed := _changed(seen, state)):
            problems[key] = (
                f"{_names(key, *changed)}: changed after it was read. Nothing is made again, and "
                "new shards are not compared until this is settled: put the former file back (with "
                "its time) and give the new data a new key; or have it taken as it is now, by "
                "`snip dedup` or the job `arrival` over all shards."
            )
    return problems


def _names(key: str, features: bool, metadata: bool) -> str:
    """One file of a shard, or both."""
    patterns = (features, shards.FEATURES_PATTERN), (metadata, shards.METADATA_PATTERN)
    return " and ".join(pattern.format(key=key) for wanted, pattern in patterns if wanted)


def _changed(seen: State, before: State) -> tuple[bool, bool] | None:
    """Whether features and metadata differ from what was read; None when neither does."""
    features = seen[:2] not in (UNSEEN, before[:2])
    metadata = seen[2:] not in (UNSEEN, before[2:])
    return (features, metadata) if features or metadata else None


def admit(
    layout: Layout, source: Source, keys: list[str], now: Listing
) -> tuple[list[Shard], dict[str, list[Any]]]:
    """Register complete shards; each malformed one is refused by itself.

    Returns
    -------
    The new shards, and key -> (state, reason) of the refused ones.
    """
    found: dict[str, Shard] = {}
    refused: dict[str, list[Any]] = {}
    for key in keys:
        try:
            found[key] = shards.inspect(source, key)
        except SnipError as error:
            refused[key] = [list(now.state(key) or ()), str(error)]
    # The first shards of all are of the kind that most of them are of.
    usual = _registered_kind(layout) or _usual(s.kind for s in found.values())
    for shard in found.values():
        if reason := shards.unlike(shard, usual):
            refused[shard.key] = [list(now.state(shard.key) or ()), reason]
    good = [key for key in found if key not in refused]
    return (shards.register(layout, source, good) if good else []), refused


def registered(layout: Layout) -> dict[str, State | None]:
    """Key -> the sizes and times that the files of a registered shard had when they were read.

    None while a shard has not been read yet: until then its files may be replaced.
    """
    if not layout.registry.exists():
        return {}
    return {s.key: _read_state(layout, s.key) for s in shards.load(layout).shards}


def _read_state(layout: Layout, key: str) -> State | None:
    numbers: list[int] = []
    for output in (layout.clip_features(key), layout.metadata(key)):
        manifest = read_manifest(output)
        if manifest is None:
            return None
        size, _, time = manifest.inputs.get("source", "").partition("-")
        if not (size.isdigit() and time.isdigit()):
            return None
        numbers += [int(size), int(time)]
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def look_and_admit(
    layout: Layout, source: Source, before: Memory, *, marker: str = "", most: int = 500
) -> tuple[list[Shard], Look]:
    """One look at the source folders, and registration of what is complete.

    Parameters
    ----------
    most
        Shards to register in one look; the others follow with the next.

    Returns
    -------
    The new shards, and the look: `complete` holds what is left for the next look.

    Raises
    ------
    SnipError
        The folders or the registry cannot be read; nothing is concluded from that.
    """
    known = registered(layout)
    now = listing(source, known)
    seen = look(now, known, before, marker)
    new, refused = admit(layout, source, seen.complete[:most], now)
    left = seen.complete[most:]
    for key in left:
        seen.memory.waiting[key] = [*(now.state(key) or (-1,) * 4), 1]
    seen.memory.refused |= refused
    problems = seen.problems | {key: reason for key, (_, reason) in refused.items()}
    return new, Look(left, seen.growing, problems, seen.memory, seen.now)


def _usual(kinds: Iterable[shards.Kind]) -> shards.Kind | None:
    counted = Counter(kinds).most_common(1)
    return counted[0][0] if counted else None


def _registered_kind(layout: Layout) -> shards.Kind | None:
    if not layout.registry.exists():
        return None
    known = shards.load(layout).shards
    return known[0].kind if known else None
