"""The plan: time, memory and disk of each station, from measured rates and the engine's formulas.

A station takes as long as its processor work on all cores, or as its bytes on the disk, whichever
is more. What depends on the data and is not known before a run is assumed: see `Assumed`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from .assign import FLAT_LISTS
from .calibration import QUERIES, budget
from .errors import BadInputError
from .files import open_npy
from .rates import GRAPH_LISTS, Rates, net_size
from .resident import LIMIT
from .settings import Settings
from .shards import FEATURES_PATTERN
from .train import default_steps
from .trained import ITERATIONS, ROWS_PER_LIST, choose_lists

GB, GIB = 1e9, 2**30
PAGE = 4096
AUDIT_QUERIES = 400
JOIN_ROWS_PER_GB = 4_000_000
# A row of metadata, with its url and caption, in a parquet file and out of it.
METADATA_BYTES = 120
# Of an idle process with everything imported.
BASE_GIB = 0.7


@dataclass(frozen=True)
class Assumed:
    """What depends on the data.

    Attributes
    ----------
    probes
        Lists that a row probes.
    imbalance
        Longer work through lists of unequal length, 1 when all are equal.
    candidates, pairs
        A row.
    short_share
        Rows of a list that pass on the leading axes and get their exact ADC.
    """

    probes: float = 1.5
    imbalance: float = 1.75
    candidates: float = 2.0
    pairs: float = 0.5


# Seconds on one core that are not measured anew: a pair grouped and kept (benchmarks/groups.py),
# a row of metadata checked, rewritten, listed; a candidate handled beside its distances.
PAIR_GROUPED, ROW_PUBLISHED, CANDIDATE = 3.5e-6, 4e-6, 3e-6
# Work of a training step against the products of its batch.
TRAINING_OVERHEAD = 1.5


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
    cores, memory_gb, disk_gb_per_s
        The machine that is planned for.
    lists, codec, probes, shards_a_run
        What a run uses.
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
    lists: int
    codec: str
    probes: float
    shards_a_run: int
    stations: list[Station]
    problems: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all stations, one after the other."""
        return sum(s.seconds for s in self.stations)

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
            "peak_gib": self.peak_gib,
            "disk_gb": self.disk_gb,
        }
        return {**asdict(self), **totals}


@dataclass(frozen=True)
class _Case:
    """What the formulas share."""

    rows: int
    dim: int
    itemsize: int
    shards: int
    cores: int
    memory: float  # bytes
    lists: int
    rates: Rates
    settings: Settings
    assumed: Assumed

    @property
    def raw(self) -> float:
        return float(self.rows) * self.dim * self.itemsize

    @property
    def row_bytes(self) -> int:
        return 4 if self.rows <= 1 << 32 else 8

    @property
    def code(self) -> int:
        name, dim = self.settings.codec, self.settings.dim
        return {"SQ8": dim, "SQfp16": 2 * dim}.get(name) or int(name[2:])

    def uncached(self, size: float) -> float:
        """Bytes of a file that a later reading must fetch from the disk again."""
        return max(0.0, size - 0.5 * self.memory)

    def random(self, reads: float, row: float, size: float) -> float:
        """Bytes that reads of single rows, a page at the least, bring from the disk."""
        missing = self.uncached(size) / max(size, 1.0)
        return missing * reads * max(row, PAGE)


def flops(
    rows: int, dim: int, lists: int, train_rows: int, settings: Settings | None = None
) -> dict[str, float]:
    """Operations of the matrix products of the stations, the join apart."""
    settings = settings or Settings()
    sample = min(train_rows, lists * ROWS_PER_LIST)
    queries, sampled = min(QUERIES, rows), budget(rows, dim)
    centroids = 2.0 * settings.dim * lists * (ITERATIONS * sample + train_rows + sampled)
    exact = 2.0 * queries * sampled * (dim + 2 * settings.dim)
    assigned = 2.0 * rows * lists * settings.dim if lists <= FLAT_LISTS else 0.0
    return {
        "snip_features": 2.0 * rows * net_size(dim, settings),
        "trained_index": centroids + exact,
        "index_shards": assigned,
    }


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
    """
    settings, assumed = settings or Settings(), assumed or Assumed()
    shards = shards or max(1, -(-rows // 1_000_000))
    lists = settings.lists or choose_lists(rows)
    if memory_gb:
        settings = replace(settings, memory_gb=max(settings.memory_gb, memory_gb / 4))
    memory_gb = memory_gb or psutil.virtual_memory().total / GIB
    case = _Case(
        rows,
        dim,
        itemsize,
        shards,
        cores or rates.cores,
        memory_gb * GIB,
        lists,
        rates,
        settings,
        assumed,
    )
    disk = (disk_gb_per_s * GB) or rates.read
    written = (disk_gb_per_s * GB) or rates.write
    stations = [
        Station(
            name,
            max(work / case.cores, read / disk + write / written),
            BASE_GIB + memory / GIB,
            read / GB,
            write / GB,
        )
        for name, (work, memory, read, write) in _stations(case).items()
    ]
    a_run = int(max(1, min(shards, settings.memory_gb * JOIN_ROWS_PER_GB // max(1, rows / shards))))
    plan = Plan(
        rows,
        dim,
        itemsize,
        shards,
        case.cores,
        memory_gb,
        disk / GB,
        lists,
        settings.codec,
        assumed.probes,
        a_run,
        stations,
    )
    plan.problems.extend(_problems(plan, case))
    return plan


Cost = tuple[float, float, float, float]


def _stations(case: _Case) -> dict[str, Cost]:
    """Name -> core seconds, bytes of memory, bytes read from and written to the disk."""
    return {**_features(case), **_index(case), **_results(case)}


def _features(case: _Case) -> dict[str, Cost]:
    rows, rates, settings = case.rows, case.rates, case.settings
    sample = min(
        settings.train_rows, rows, int(settings.memory_gb * GIB / 4 / case.dim / case.itemsize)
    )
    steps = settings.steps or default_steps(sample)
    forward = 2.0 * net_size(case.dim, settings) * settings.batch
    training = steps * TRAINING_OVERHEAD * 3 * forward / rates.product
    if sample < settings.pca_below:
        training = 2.0 * sample * case.dim**2 / rates.product
    # Bytes a row that one core works on: as read, as float32, and squared in float64.
    row = float(case.cores * case.dim)
    products = flops(rows, case.dim, case.lists, 0, settings)["snip_features"]
    return {
        "metadata": (1e-7 * rows, 0.0, 0.01 * METADATA_BYTES * rows, 0.0),
        "clip_features": (case.raw / rates.hash_bytes, 8192 * 24 * row, case.raw, 8.0 * rows),
        # One process trains on all cores, at the rate of the measured ones.
        "snip_model": (training, 3.0 * sample * case.dim * case.itemsize, 0.0, 0.0),
        "snip_features": (
            products / rates.compress,
            4096 * 10 * row,
            case.uncached(case.raw),
            2.0 * settings.dim * rows,
        ),
    }


def _index(case: _Case) -> dict[str, Cost]:
    rows, rates, settings, lists = case.rows, case.rates, case.settings, case.lists
    sample = min(rows, max(65_536, lists * ROWS_PER_LIST))
    sampled = budget(rows, case.dim)
    training = flops(rows, case.dim, lists, sample, settings)["trained_index"] / rates.product
    training += sampled * (1 / rates.encode + lists / rates.assign)
    snip = 2.0 * settings.dim * rows
    entry = float(case.code + case.row_bytes)
    shard = case.code + 12 + 4 * case.assumed.probes
    assigned = lists / rates.assign
    if lists > FLAT_LISTS:
        assigned = (lists.bit_length() / GRAPH_LISTS.bit_length()) / rates.graph
    kept = 8.0 * sample * settings.dim + 4.0 * sampled * (case.dim + 3 * settings.dim)
    tables = 8.0 * (lists + 1)
    return {
        "trained_index": (training, kept, PAGE * float(sample), tables * settings.dim),
        "index_shards": (
            rows * (1 / rates.encode + assigned),
            rows / case.shards * 80.0 + 2 * lists * 4.0 * settings.dim,
            case.uncached(snip),
            shard * rows + 2 * tables * case.shards,
        ),
        "snip_index": (
            2e-8 * rows,
            2.0 * (1 << 28) + 3 * tables,
            case.uncached(shard * rows),
            entry * rows,
        ),
        "duplicate_pairs": _join(case, snip, entry),
    }


def _join(case: _Case, snip: float, entry: float) -> Cost:
    rows, rates, assumed = case.rows, case.rates, case.assumed
    length = rows / case.lists * assumed.imbalance
    compared = rows * assumed.probes * length / 2
    candidates, pairs = assumed.candidates * rows, assumed.pairs * rows
    work = compared / rates.join + candidates * CANDIDATE + 1.5 * pairs / rates.verify
    group = min(rows, case.settings.memory_gb * JOIN_ROWS_PER_GB)
    groups = rows / max(group, 1)
    memory = rows + min(1 << 30, 40 * rows) + 60.0 * assumed.pairs * group
    memory += 3 * case.cores * length * (4 * 32 + 4 * case.settings.dim + entry)
    read = case.uncached(entry * rows) * (groups + 1) / 2
    read += case.random(rows * assumed.probes, 2.0 * case.settings.dim, snip)
    if case.settings.tier == "raw":
        read += case.random(2 * 1.5 * pairs, case.dim * case.itemsize, case.raw)
    return work, memory, read, 14.0 * pairs


def _results(case: _Case) -> dict[str, Cost]:
    rows, assumed, rates = case.rows, case.assumed, case.rates
    pairs, wide = assumed.pairs * rows, case.row_bytes / 4
    # Deciding goes through one pass after the other on one core.
    grouping = pairs * PAIR_GROUPED * case.cores
    words = METADATA_BYTES * float(rows)
    audit = 2.0 * AUDIT_QUERIES * rows * case.dim / rates.product + case.raw / rates.hash_bytes
    return {
        "duplicate_groups": (grouping, 13.0 * rows * wide + GIB, 14.0 * pairs, 12.0 * wide * rows),
        "dup_bitmap": (2e-8 * rows, float(rows), 0.0, 1.125 * rows),
        "deduped_metadata": (ROW_PUBLISHED * rows, 0.2 * GIB, words, words),
        "drop_list": (ROW_PUBLISHED * rows, 0.2 * GIB, words, 0.3 * words),
        "checks": (audit, 4096 * 16.0 * case.cores * case.dim, case.uncached(case.raw), 0.0),
    }


def _problems(plan: Plan, case: _Case) -> list[str]:
    found = []
    heaviest = max(plan.stations, key=lambda s: s.memory_gib)
    if plan.peak_gib > plan.memory_gb:
        found.append(
            f"{heaviest.name} needs {plan.peak_gib:.1f} GiB, not {plan.memory_gb:.0f}: plan with "
            "more memory, or de-duplicate fewer rows at once."
        )
    if heaviest.name == "duplicate_groups" and plan.peak_gib > plan.memory_gb:
        found.append("`--keep first` needs no counting of neighbours: 9 bytes a row less.")
    join = next(s for s in plan.stations if s.name == "duplicate_pairs")
    if join.read_gb / plan.disk_gb_per_s > 0.5 * join.seconds and join.seconds > 3600:
        found.append(
            f"duplicate_pairs waits for the disk ({join.read_gb:,.0f} GB in single rows): a faster "
            "disk, more memory, or `--tier snip` (raw features are then not read)."
        )
    if plan.seconds > 86_400:
        slowest = max(plan.stations, key=lambda s: s.seconds)
        found.append(
            f"longer than a day, {slowest.name} most of all ({slowest.seconds / 3600:.1f} h): more "
            "cores, or several machines that share the folders."
        )
    if case.code < 16 and plan.rows > 500_000_000:
        found.append(
            f"{plan.codec} has many false candidates in lists this long; PQ16 takes "
            f"{8 * plan.rows / GB:.0f} GB more and has fewer."
        )
    return found


def headers(folder: Path) -> tuple[int, int, int, int]:
    """Rows, numbers a row, bytes a number and shards of a folder of features, from its headers.

    Raises
    ------
    BadInputError
        There are none.
    """
    files = sorted(folder.glob(FEATURES_PATTERN.format(key="*"))) if folder.is_dir() else []
    if not files:
        raise BadInputError(f"{folder}: no file named {FEATURES_PATTERN}; give another folder.")
    arrays = [open_npy(file) for file in files]
    first = arrays[0]
    if first.ndim != 2:
        raise BadInputError(f"{files[0]}: shape {first.shape}; expected rows x dimension.")
    return sum(len(a) for a in arrays), int(first.shape[1]), first.itemsize, len(files)
