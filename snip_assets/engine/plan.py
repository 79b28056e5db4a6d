"""The plan: time, memory and disk of each station, from measured rates and the engine's formulas.

A station takes as long as its processor work on all cores, or as its bytes on the disk, whichever
is more (see `station_costs`). What a run would choose is asked where the run asks (`choices`).
What depends on the data and is not known before a run is assumed: see `station_costs.Assumed`.
"""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from . import choices, threads
from .errors import BadInputError
from .features import opened_alike, require_alike
from .rates import Rates
from .settings import Settings
from .shards import FEATURES_PATTERN
from .station_costs import Assumed, Case, Cost, costs
from .storage.remote_files import is_remote, npy_header, remote_names
from .storage.resident import LIMIT

GB, GIB = 1e9, 2**30
# A row of metadata, with its url and caption, in a parquet file.
METADATA_BYTES = 120.0
# Stations whose memory is that of blocks of rows, one a worker.
OF_CORES = ("clip_features", "snip_features")
# Headers asked for at the same time.
HEADERS_AT_ONCE = 16
# Of an idle process with everything imported.
BASE_GIB = 0.7


@dataclass(frozen=True)
class Station:
    """One station of a plan: seconds, GiB of memory (file pages apart), GB of the disk."""

    name: str
    seconds: float
    memory_gib: float
    read_gb: float
    write_gb: float


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes
    ----------
    rows, dim, itemsize, shards
        The data set.
    cores, memory_gb, disk_gb_per_s, gpu_tflops
        The machine that is planned for.
    free_gb
        Room for the outputs; 0: not known.
    lists, codec, probes, shards_a_run, run_memory_gb
        What a run uses; `run_memory_gb` is the setting `memory_gb` that it is planned with.
    stations
        In their order.
    problems
        What does not fit, and what to change.
    """

    rows: int
    dim: int
    itemsize: int
    shards: int
    cores: int
    memory_gb: float
    disk_gb_per_s: float
    gpu_tflops: float
    free_gb: float
    lists: int
    codec: str
    probes: float
    shards_a_run: int
    run_memory_gb: float
    stations: list[Station]
    problems: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all stations, one after the other."""
        return sum(s.seconds for s in self.stations)

    @property
    def retraining_seconds(self) -> float:
        """Of those that are made again once net and index have been trained again: most of them."""
        return sum(s.seconds for s in self.stations if s.name not in ("metadata", "clip_features"))

    @property
    def peak_gib(self) -> float:
        """Memory at the most, with the file pages that a process keeps."""
        return max(s.memory_gib for s in self.stations) + LIMIT / GIB

    @property
    def disk_gb(self) -> float:
        """What the outputs take."""
        return sum(s.write_gb for s in self.stations)

    def to_json(self) -> dict[str, Any]:
        """A plain value."""
        totals = {
            "hours": self.seconds / 3600,
            "retraining_hours": self.retraining_seconds / 3600,
            "peak_gib": self.peak_gib,
            "disk_gb": self.disk_gb,
        }
        return {**asdict(self), **totals}


def predict(
    rows: int,
    dim: int,
    rates: Rates,
    settings: Settings | None = None,
    *,
    itemsize: int = 2,
    shards: int = 0,
    cores: int = 0,
    memory_gb: float = 0.0,
    disk_gb_per_s: float = 0.0,
    gpu_tflops: float = 0.0,
    metadata_bytes: float = METADATA_BYTES,
    source_rate: float = 0.0,
    free: float = 0.0,
    assumed: Assumed | None = None,
) -> Plan:
    """Plan a run.

    Parameters
    ----------
    rows, dim, itemsize
        Raw features: numbers a row, bytes a number.
    rates
        See `rates.measure`; scaled to `cores`.
    shards
        0: of about a million rows each.
    cores, memory_gb, disk_gb_per_s
        Of the machine to plan for; 0: those of this machine. A machine whose memory is given
        is planned with a quarter of it for `settings.memory_gb`, if that is more.
    gpu_tflops
        What a GPU does in the products of the net, in 10^12 float32 operations a second; 0: what
        was measured, if there is one. Where it is given, training and compression are planned on
        it, the join is not.
    metadata_bytes
        A row, in a parquet file.
    source_rate
        Bytes a second of the raw features where they lie, see `rates.reading`; 0: as the disk.
    free
        Bytes of room for the outputs; 0: not known.
    """
    settings, assumed = settings or Settings(), assumed or Assumed()
    shards = shards or max(1, -(-rows // 1_000_000))
    if memory_gb:
        settings = replace(settings, memory_gb=max(settings.memory_gb, memory_gb / 4))
    settings = choices.settled(rows, settings)
    memory_gb = memory_gb or psutil.virtual_memory().total / GIB
    # No more threads than workers.
    cores = min(cores or rates.cores, settings.workers or (1 << 30))
    case = Case(
        rows=rows,
        dim=dim,
        itemsize=itemsize,
        shards=shards,
        cores=cores,
        memory=memory_gb * GIB,
        metadata_bytes=metadata_bytes,
        rates=rates,
        settings=settings,
        assumed=assumed,
        gpu=1e12 * gpu_tflops or rates.gpu,
        gpu_join=0.0 if gpu_tflops else rates.gpu_join,
        source_rate=source_rate,
    )
    disk = (disk_gb_per_s * GB) or rates.read
    written = (disk_gb_per_s * GB) or rates.write
    plan = Plan(
        rows=rows,
        dim=dim,
        itemsize=itemsize,
        shards=shards,
        cores=cores,
        memory_gb=memory_gb,
        disk_gb_per_s=disk / GB,
        gpu_tflops=case.gpu / 1e12,
        free_gb=free / GB,
        lists=settings.lists,
        codec=settings.codec,
        probes=assumed.probes,
        shards_a_run=choices.shards_a_run(rows, shards, settings),
        run_memory_gb=settings.memory_gb,
        stations=[_station(*some, cores, disk, written) for some in costs(case).items()],
    )
    plan.problems.extend(_problems(plan, case))
    return plan


def _station(name: str, cost: Cost, cores: int, read: float, write: float) -> Station:
    """In the units of a plan; `read` and `write` are bytes a second of the disk."""
    return Station(
        name=name,
        seconds=cost.seconds(cores, read, write),
        memory_gib=BASE_GIB + cost.memory / GIB,
        read_gb=cost.read / GB,
        write_gb=cost.write / GB,
    )


def _problems(plan: Plan, case: Case) -> list[str]:
    found = []
    heaviest = max(plan.stations, key=lambda s: s.memory_gib)
    if plan.peak_gib > plan.memory_gb:
        found.append(
            f"{heaviest.name} needs {plan.peak_gib:.1f} GiB, not {plan.memory_gb:.3g}: "
            f"{_cure(plan, heaviest)}."
        )
    if plan.free_gb and plan.disk_gb > plan.free_gb:
        found.append(
            f"the outputs take {plan.disk_gb:,.0f} GB, and {plan.free_gb:,.0f} are free where they "
            "would lie: choose another disk with --out."
        )
    join = next(s for s in plan.stations if s.name == "duplicate_pairs")
    if join.read_gb / plan.disk_gb_per_s > 0.5 * join.seconds and join.seconds > 3600:
        found.append(
            "duplicate_pairs waits for the disk, which single rows keep as long as "
            f"{join.read_gb:,.0f} GB in one go: a faster disk, more memory, or `--tier snip` (raw "
            "features are then not read)."
        )
    if plan.seconds > 86_400:
        slowest = max(plan.stations, key=lambda s: s.seconds)
        found.append(
            f"longer than a day, {slowest.name} most of all ({slowest.seconds / 3600:.1f} h): more "
            "cores, or several machines that share the folders."
        )
    if plan.codec == "PQ8" and choices.best_codec(plan.rows, case.settings) != plan.codec:
        found.append(
            f"{plan.codec} has many false candidates in lists this long; PQ16 takes "
            f"{8 * plan.rows / GB:.0f} GB more and has fewer (`--codec auto` chooses it)."
        )
    return found


def _cure(plan: Plan, heaviest: Station) -> str:
    """What makes a station take less memory."""
    if plan.run_memory_gb > plan.memory_gb / 2:
        return f"give a run less than `--memory-gb {plan.run_memory_gb:g}`"
    if heaviest.name in OF_CORES:
        return "give a run fewer `--workers`, each of which holds blocks of rows"
    return "plan with more memory, or de-duplicate fewer rows at once"


def feature_files(folder: Path) -> list[Path]:
    """Files of raw features in a folder, here or at a url."""
    pattern = FEATURES_PATTERN.format(key="*")
    if is_remote(folder):
        return [folder / name for name in sorted(fnmatch.filter(remote_names(folder), pattern))]
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def headers(folder: Path) -> tuple[int, int, int, int]:
    """Rows, numbers a row, bytes a number and shards of a folder of features, from its headers.

    Raises
    ------
    BadInputError
        There are none, or a run would refuse them: they are no features, or not all alike.
    """
    files = feature_files(folder)
    if not files:
        raise BadInputError(f"{folder}: no file named {FEATURES_PATTERN}; give another folder.")
    if not is_remote(folder):
        arrays = opened_alike(files)
        first = arrays[0]
        return sum(len(a) for a in arrays), int(first.shape[1]), first.itemsize, len(files)
    # A few bytes of each, many at once.
    found = list(threads.ordered_map(npy_header, files, HEADERS_AT_ONCE))
    like = np.empty((0, *found[0][0][1:]), found[0][1])
    for file, (shape, dtype) in zip(files, found, strict=True):
        require_alike(file, shape, dtype, files[0].name, like)
    return sum(shape[0] for shape, _ in found), like.shape[1], like.itemsize, len(files)
