"""What each station of a run costs: processor, memory and disk, by its formula.

Constants that no rate measures were read off runs of 1, 3 and 10 million rows in shards of 100,000,
on two cores of an AMD EPYC (Zen 3), each from what its station took beyond the terms that are
measured. On another machine they are taken to go as the interpreter does there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from . import choices, known_pairs, neighbours, threads
from .calibration import QUERIES, budget
from .rates import WIDTH, Rates, net_size
from .settings import Settings
from .trained import ITERATIONS, ROWS_PER_LIST

GIB = 2**30
PAGE = 4096
# Rows in the cache that the interpreter hashed in a second where the constants below were read off:
# reckoned from what `clip_features`, which hashed through it then, took there (2.7e6 from memory),
# and from another machine, where it hashed 1.45 times as many from the cache.
INTERPRETED = 3.9e6
# Rows that the report searches at the most, and for how many; the share of a grouping that a
# threshold of it takes.
REPORT_ROWS, NEAR_MISSES, THRESHOLD = 250_000, 1_600, 0.2
# Seconds on one core: an output of a shard locked, written and sealed; a shard looked at by the
# checks, and announced to Dagster.
SHARD_SEALED, SHARD_CHECKED, SHARD_ANNOUNCED = 0.022, 0.02, 0.02
# Checks, and the pages of a report, whatever the size.
LOOKED, PAGES = 3.0, 1.2
# A row grouped, and a pair of it; a row of the bitmap with its digests.
ROW_GROUPED, PAIR_GROUPED, ROW_MARKED = 1e-7, 8e-7, 4e-8
# Rows that are in a pair, for each pair: assumed.
PAIRED = 1.2
# A byte of metadata filtered, and listed.
BYTE_KEPT, BYTE_LISTED = 1.2e-8, 1e-8
# A candidate handled beside its distances, on one of all cores.
CANDIDATE = 3e-6
# Beyond so many rows, lists are finer than what the data clusters in, and most rows of one are near
# each other: false candidates are taken to grow as this power of the rows, which leads from what is
# assumed there to what was counted at 99 million rows of `benchmarks/synthetic.py` with codes of 16
# bytes, where one in so many is left. Other data will differ.
DENSE_ROWS, DENSER, FINER = 1e7, 0.95, 100.0
# Times what it takes to read a file in one go, where pages of it are read one by one.
SCATTERED = 4.0
# A row merged into the index; a segment opened, written and sealed.
ROW_MERGED, SEGMENT = 5e-8, 0.2
# A row read, converted and projected for the search of known pairs, on one of all cores (read off
# runs on Zen 4); quantiser and curves of the calibration, whatever the size.
ROW_SEARCHED, CALIBRATED = 1.4e-6, 4.0
# A number of a raw row read, normalised and rounded for an exact search, on one of all cores.
NUMBER_PREPARED = 2.5e-9
# Work of a training step against its products: softmax, its gradient, optimiser, validation.
TRAINING_OVERHEAD = 1.6


@dataclass(frozen=True)
class Assumed:
    """What depends on the data.

    Attributes
    ----------
    probes
        Lists that a row probes.
    imbalance
        Longer work through lists of unequal length, 1 when all are equal.
    pairs
        A row.
    false_candidates
        A row, with 8 bytes of code, up to `DENSE_ROWS` rows.
    """

    probes: float = 1.5
    imbalance: float = 1.75
    pairs: float = 0.5
    false_candidates: float = 0.75


@dataclass(frozen=True)
class Cost:
    """What a station takes.

    Attributes
    ----------
    work
        Seconds of one core, shared by all.
    alone
        Seconds that only one core works.
    gpu
        Seconds that a GPU works meanwhile.
    memory
        Bytes, file pages apart.
    read, write
        Bytes from and to the disk.
    read_rate
        Bytes a second that are read; 0: as the disk has it.
    """

    work: float = 0.0
    alone: float = 0.0
    memory: float = 0.0
    read: float = 0.0
    write: float = 0.0
    gpu: float = 0.0
    read_rate: float = 0.0

    def seconds(self, cores: int, read: float, write: float) -> float:
        """On a machine with some cores, and a disk that reads and writes so many bytes a second."""
        disk = self.read / (self.read_rate or read) + self.write / write
        return self.alone + max(self.work / cores, self.gpu, disk)


@dataclass(frozen=True)
class Case:
    """What the formulas share; `settings` settled (see `choices.settled`), `memory` in bytes.

    `gpu`: float32 operations a second of the net's products on a GPU, `gpu_join`: pairs that the
    join compares there in a second; 0: there is none. `source_rate`: bytes a second of the raw
    features where they lie; 0: as the disk has it.
    """

    rows: int
    dim: int
    itemsize: int
    shards: int
    cores: int
    memory: float
    metadata_bytes: float
    rates: Rates
    settings: Settings
    assumed: Assumed
    gpu: float = 0.0
    gpu_join: float = 0.0
    source_rate: float = 0.0

    @property
    def lists(self) -> int:
        """Inverted lists."""
        return self.settings.lists

    @property
    def pace(self) -> float:
        """Seconds that a core takes here for what took one where the constants were read off."""
        return INTERPRETED / self.rates.interpreted

    @property
    def sealed(self) -> float:
        """Seconds to lock, write and seal an output of each shard."""
        return SHARD_SEALED * self.pace * self.shards

    @property
    def raw(self) -> float:
        """Bytes of the raw features."""
        return float(self.rows) * self.dim * self.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row id."""
        return 4 if self.rows <= 1 << 32 else 8

    @property
    def code(self) -> int:
        """Bytes of a code."""
        name, dim = self.settings.codec, self.settings.dim
        return {"SQ8": dim, "SQfp16": 2 * dim}.get(name) or int(name[2:])

    def uncached(self, size: float) -> float:
        """Bytes of a file that a later reading must fetch from the disk again."""
        return max(0.0, size - 0.5 * self.memory)

    def random(self, reads: float, row: float, size: float) -> float:
        """Bytes that could be read in one go, while single rows come, a page at the least."""
        missing = self.uncached(size) / max(size, 1.0)
        return SCATTERED * missing * reads * max(row, PAGE)

    @property
    def candidates(self) -> float:
        """True and false ones, a row."""
        grown = max(1.0, self.rows / DENSE_ROWS) ** DENSER
        finer = FINER if self.code >= 16 else 1.0
        return self.assumed.pairs + self.assumed.false_candidates * grown / finer


def flops(
    rows: int, dim: int, lists: int, train_rows: int, settings: Settings | None = None
) -> dict[str, float]:
    """Operations of the matrix products of the stations, the join apart."""
    settings = settings or Settings()
    queries, sampled = min(QUERIES, rows), budget(rows, dim)
    centroids = 2.0 * settings.dim * lists * _assigned(lists, train_rows, sampled)
    # Pairs of a sample that is not the whole are searched in the SNIP features of all rows.
    raw = dim if sampled >= rows else 0
    exact = 2.0 * queries * sampled * (raw + 2 * settings.dim)
    axes = neighbours.axes_of(settings.dim, neighbours.FAR_AXES)
    known = 2.0 * known_pairs.QUERIES * axes * rows if sampled < rows else 0.0
    return {
        "snip_features": 2.0 * rows * net_size(dim, settings),
        "trained_index": centroids + exact + known,
        "index_shards": 2.0 * rows * lists * settings.dim,
    }


def _assigned(lists: int, train_rows: int, sampled: int) -> float:
    """Rows that are assigned to lists to train these, the codec and the calibration."""
    return float(ITERATIONS * min(train_rows, lists * ROWS_PER_LIST) + train_rows + sampled)


def costs(case: Case) -> dict[str, Cost]:
    """Name of a station -> its cost, in the order in which they run."""
    return {
        **_features(case),
        "trained_index": _trained_index(case),
        **_index(case),
        "duplicate_pairs": _join(case),
        **_results(case),
        **_looks(case),
    }


def _features(case: Case) -> dict[str, Cost]:
    rows, rates, settings = case.rows, case.rates, case.settings
    # Bytes a row that one core works on: as read, as float32, and squared in float64.
    row = float(case.cores * case.dim)
    products = flops(rows, case.dim, case.lists, 0, settings)["snip_features"]
    on_cores, on_gpu = (0.0, products / case.gpu) if case.gpu else (products / rates.compress, 0.0)
    return {
        "metadata": Cost(alone=case.sealed, read=0.01 * case.metadata_bytes * rows),
        "clip_features": Cost(
            work=case.raw / rates.hash_bytes,
            alone=case.sealed / threads.AT_ONCE,
            memory=4096 * 24 * row,
            read=case.raw,
            write=8.0 * rows,
            read_rate=case.source_rate,
        ),
        "snip_model": _net(case),
        "snip_features": Cost(
            work=on_cores,
            alone=case.sealed / threads.AT_ONCE,
            memory=4096 * 10 * row,
            read=case.uncached(case.raw),
            write=2.0 * settings.dim * rows,
            gpu=on_gpu,
        ),
    }


def _net(case: Case) -> Cost:
    settings, batch = case.settings, case.settings.batch
    sample = min(case.rows, choices.net_rows(case.dim * case.itemsize, settings))
    # Forward, and twice as much back; similarities of a batch, those of raw rows without a
    # gradient.
    products = 3 * 2.0 * net_size(case.dim, settings) * batch
    products += 2.0 * batch**2 * (case.dim + 3 * settings.dim)
    training = choices.steps(sample, settings) * TRAINING_OVERHEAD * products
    if sample < settings.pca_below:
        training = 2.0 * sample * case.dim**2
    # One process trains on all cores, at the rate of the measured ones.
    memory = 3.0 * sample * case.dim * case.itemsize
    if case.gpu:
        return Cost(alone=training / case.gpu, memory=memory)
    return Cost(work=training / case.rates.product, memory=memory)


def _trained_index(case: Case) -> Cost:
    rows, rates, dim = case.rows, case.rates, case.settings.dim
    sample, sampled = choices.index_rows(rows, case.lists), budget(rows, case.dim)
    work = flops(rows, case.dim, case.lists, sample, case.settings)["trained_index"]
    assigned = case.lists * _assigned(case.lists, sample, sampled)
    work = (work - 2.0 * dim * assigned) / rates.product
    work += assigned / rates.assign + sampled / rates.encode
    read, raw = PAGE * float(sample), case.dim
    if sampled < rows:
        # These are comparisons of the join's kernel, not bare products.
        pairs = float(known_pairs.QUERIES) * rows
        axes = neighbours.axes_of(dim, neighbours.FAR_AXES)
        work += pairs * (axes / WIDTH / rates.join - 2 * axes / rates.product)
        searched = choices.searched_rows(rows, known_pairs.QUERIES)
        work += ROW_SEARCHED * case.pace * searched
        read, raw = read + case.uncached(2.0 * dim * searched), 0
    memory = 8.0 * sample * dim + 4.0 * sampled * (raw + 3 * dim)
    return Cost(work, CALIBRATED * case.pace, memory, read, 8.0 * (case.lists + 1) * dim)


def _index(case: Case) -> dict[str, Cost]:
    rows, rates, settings, lists = case.rows, case.rates, case.settings, case.lists
    shard = case.code + 12 + 4 * case.assumed.probes
    tables = 8.0 * (lists + 1)
    return {
        "index_shards": Cost(
            work=rows * (1 / rates.encode + lists / rates.assign),
            alone=case.sealed / threads.AT_ONCE,
            memory=threads.AT_ONCE * rows / case.shards * 80.0 + 2 * lists * 4.0 * settings.dim,
            read=case.uncached(2.0 * settings.dim * rows),
            write=shard * rows + 2 * tables * case.shards,
        ),
        "snip_index": Cost(
            alone=case.pace * (SEGMENT + ROW_MERGED * rows),
            memory=2.0 * (1 << 28) + 3 * tables,
            read=case.uncached(shard * rows),
            write=float(case.code + case.row_bytes) * rows,
        ),
    }


def _join(case: Case) -> Cost:
    rows, rates, assumed = case.rows, case.rates, case.assumed
    snip, entry = 2.0 * case.settings.dim * rows, float(case.code + case.row_bytes)
    length = rows / case.lists * assumed.imbalance
    compared = rows * assumed.probes * length / 2
    candidates, pairs = case.candidates * rows, assumed.pairs * rows
    on_gpu = case.gpu_join > 0 and choices.join_device(case.settings, case.cores) != "cpu"
    work = candidates * CANDIDATE * case.pace + 1.5 * pairs / rates.verify
    work += 0.0 if on_gpu else compared / rates.join
    group = min(rows, choices.join_rows(case.settings))
    groups = rows / max(group, 1)
    own, asked, held = snip / groups, assumed.probes * group, choices.query_rows(case.settings)
    memory = rows + min(1 << 30, 40 * rows) + 60.0 * assumed.pairs * group
    memory += 2.0 * case.settings.dim * min(held, asked)
    memory += 3 * case.cores * length * (4 * 32 + 4 * case.settings.dim + entry)
    read = case.uncached(entry * rows) * (groups + 1) / 2
    # The queries, in passes; and the earlier row of a candidate where it is not one of them, for
    # each group of shards once at the most.
    read += case.uncached(snip) + groups * (ceil(asked / held) - 1) * case.uncached(own)
    earlier = min(candidates * (1 - 1 / groups), (groups - 1) * rows / 2)
    read += case.random(earlier, 2.0 * case.settings.dim, snip)
    if case.settings.tier == "raw":
        read += case.random(2 * 1.5 * pairs, case.dim * case.itemsize, case.raw)
    return Cost(work, 0.0, memory, read, 14.0 * pairs, compared / case.gpu_join if on_gpu else 0.0)


def _grouping(case: Case, rows: float, pairs: float) -> float:
    """Seconds to group rows by pairs, and to decide: pass by pass, on one core."""
    return case.pace * (ROW_GROUPED * rows + PAIR_GROUPED * pairs)


def _results(case: Case) -> dict[str, Cost]:
    rows, wide = case.rows, case.row_bytes / 4
    pairs, words = case.assumed.pairs * rows, case.metadata_bytes * rows
    paired, side_by_side = min(rows, PAIRED * pairs), min(case.cores, choices.SIDE_BY_SIDE)
    return {
        "duplicate_groups": Cost(
            alone=_grouping(case, rows, pairs),
            memory=max(5 * rows + 4 * paired, 21 * paired) * wide + GIB,
            read=14.0 * pairs,
            write=12.0 * wide * rows,
        ),
        "dup_bitmap": Cost(
            alone=ROW_MARKED * case.pace * rows, memory=float(rows), write=1.125 * rows
        ),
        "decisions": Cost(alone=SHARD_ANNOUNCED * case.pace * case.shards),
        "deduped_metadata": Cost(
            alone=BYTE_KEPT * case.pace * words / side_by_side + case.sealed,
            memory=0.2 * GIB,
            read=words,
            write=words,
        ),
        "drop_list": Cost(
            alone=BYTE_LISTED * case.pace * words / side_by_side + case.sealed,
            memory=0.2 * GIB,
            read=words,
            write=0.3 * words,
        ),
    }


def _looks(case: Case) -> dict[str, Cost]:
    """Checks and report: exact search for some rows, and groups for each threshold shown."""

    def exact(rows: float, queries: float) -> float:
        axes = neighbours.axes_of(case.dim)
        projected = 2.0 * rows * axes * case.dim / case.rates.product
        compared = queries * rows * axes / WIDTH / case.rates.join
        return projected + compared + NUMBER_PREPARED * case.pace * rows * case.dim

    memory = 4096 * 16.0 * case.cores * case.dim
    searched = max(1, choices.searched_rows(case.rows, choices.AUDITED_ROWS))
    pairs = min(case.assumed.pairs * case.rows, choices.THRESHOLD_PAIRS)
    at_once = choices.groupings(case.rows, replace(case.settings, workers=case.cores))
    groupings, sorters = THRESHOLD * (choices.THRESHOLDS + 1), min(GIB, 64 * pairs)
    return {
        "checks": Cost(
            exact(searched, choices.AUDITED_ROWS * case.rows / searched),
            case.pace * (LOOKED + SHARD_CHECKED * case.shards),
            # `every_row_once` counts each row: a byte, and bits.
            max(memory, 1.4 * case.rows),
            case.uncached(case.raw * searched / case.rows),
        ),
        "dedup_report": Cost(
            exact(min(case.rows, REPORT_ROWS), NEAR_MISSES),
            PAGES * case.pace + groupings / at_once * _grouping(case, min(case.rows, pairs), pairs),
            max(memory, 5.0 * case.rows * case.row_bytes / 4 + at_once * (26.0 * pairs + sorters)),
            14.0 * case.assumed.pairs * case.rows,
        ),
    }
