"""What a run uses where its settings leave it open: stations and plan both ask here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from . import threads
from .settings import Settings
from .trained import ROWS_PER_LIST, choose_lists

AUTO = "auto"
# Rows whose pairs are held in memory at once, for each GiB that may be planned with.
JOIN_ROWS_PER_GB = 4_000_000
# Lists longer than this have many false candidates with 8 bytes a row, each a page to read once the
# SNIP features do not fit in memory: from 25 million rows on.
LONG_LIST = 8_333
FEWEST_INDEX_ROWS = 65_536
# Lists that a row may probe, and all rows of a small data set together: 100 MB in calibration.
FEWEST_PROBES, PROBES = 8, 1 << 23
# Least share of the allowed loss that is made use of, and rows from which on all of it is: with
# fewer, more candidates cost little.
SPARED, ALL_LOST = 0.02, 1e7
# Pairs measured again, and rows whose true partners are searched for, unless told otherwise.
AUDITED_PAIRS, AUDITED_ROWS = 2_000, 1_000
# Rows that true partners are searched for in, at the least, and rows that they are searched for, at
# the most.
LEAST_SEARCHED, MOST_SEARCHED_FOR = 2_000_000, 16_384
# Shards that are worked on side by side, by one core each, at the most: each holds a row group of
# metadata.
SIDE_BY_SIDE = 4
# Steps of the threshold that the report shows, and pairs that are grouped for each, about: those of
# random groups where there are more.
THRESHOLDS, THRESHOLD_PAIRS = 20, 100_000
# Groupings that run at once: more would wait for memory to be read, and be no faster.
MOST_GROUPINGS = 8
# Cores that compare as many pairs as the fastest GPU that was measured (an H200), whose single
# queue they would wait for.
JOIN_CORES = 8

Item = TypeVar("Item")


def lists(rows: int, settings: Settings) -> int:
    """Number of inverted lists: that of the settings, else by the rows."""
    return settings.lists or choose_lists(rows)


def probes(rows: int, settings: Settings) -> int:
    """Lists that a row may probe: where rows are few, so many that no group spans more of them."""
    return settings.max_probes or max(FEWEST_PROBES, PROBES // max(1, rows))


def loss(rows: int, settings: Settings) -> float:
    """Share of the true pairs that calibration may lose: where rows are few, hardly any."""
    return (1 - settings.target_recall) * min(1.0, max(SPARED, rows / ALL_LOST))


def codec(rows: int, settings: Settings) -> str:
    """What the index stores of a row: with `auto`, finer codes where lists are long."""
    return best_codec(rows, settings) if settings.codec == AUTO else settings.codec


def best_codec(rows: int, settings: Settings) -> str:
    """PQ8, or PQ16 where false candidates would cost more than 8 bytes a row."""
    return "PQ16" if rows > LONG_LIST * lists(rows, settings) else "PQ8"


def settled(rows: int, settings: Settings) -> Settings:
    """Settings with nothing left open that the index is made from."""
    return replace(settings, lists=lists(rows, settings), codec=codec(rows, settings))


def index_rows(rows: int, lists: int) -> int:
    """Rows drawn to train the index."""
    return min(rows, max(FEWEST_INDEX_ROWS, lists * ROWS_PER_LIST))


def net_rows(row_bytes: int, settings: Settings) -> int:
    """Rows to train the net on, at the most: `train_rows`, and a quarter of `memory_gb`."""
    return max(1, min(settings.train_rows, int(settings.memory_gb * 2**30 / 4) // row_bytes))


def steps(rows: int, settings: Settings) -> int:
    """Training steps for a number of rows: a minute on two cores for 40 thousand of 512."""
    return settings.steps or int(np.clip(rows // 25, 400, 4000))


def join_rows(settings: Settings) -> int:
    """Rows of shards that are joined together: each list is then read once for all of them."""
    return int(settings.memory_gb * JOIN_ROWS_PER_GB)


def query_rows(settings: Settings) -> int:
    """Rows whose SNIP features the join holds at once, to compare them with the lists they probe.

    An eighth of `memory_gb`.
    """
    return max(1, int(settings.memory_gb * 2**30 / 8) // (2 * settings.dim))


def join_device(settings: Settings, cores: int = 0) -> str:
    """Where the join compares: `auto` takes a GPU where cores (default: `workers`) are few."""
    many = (cores or threads.count(settings.workers)) >= JOIN_CORES
    return "cpu" if settings.device == AUTO and many else settings.device


def searched_rows(rows: int, sample: int) -> int:
    """Rows of random shards to search in for as many pairs as `sample` rows have in all.

    As many more are searched for instead, which costs the same, and fewer are read.
    """
    return min(rows, max(LEAST_SEARCHED, rows * sample // MOST_SEARCHED_FOR))


def groupings(rows: int, settings: Settings) -> int:
    """Groupings of the pairs that run at once: each takes 13 bytes a row, and its sorters."""
    most = int(settings.memory_gb * 2**30 // (13 * rows + 2**30))
    return max(1, min(threads.count(settings.workers), most, MOST_GROUPINGS))


def batches(items: Iterable[Item], sizes: Sequence[int], most: int) -> Iterator[list[Item]]:
    """Consecutive items in batches of at most `most` rows; a larger one is a batch of its own."""
    batch: list[Item] = []
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and held + size > most:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
    if batch:
        yield batch


def shards_a_run(rows: int, shards: int, settings: Settings) -> int:
    """Shards of equal size that are joined together."""
    sizes = np.diff(np.linspace(0, rows, shards + 1).astype(np.int64)).tolist()
    return max(len(batch) for batch in batches(sizes, sizes, join_rows(settings)))
