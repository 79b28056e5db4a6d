"""Every setting of the engine with its default; the command line and Dagster show these."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from .errors import BadInputError

# Least and largest value of each number.
BOUNDS: dict[str, tuple[float, float]] = {
    "max_distance": (1e-6, 4.0),
    "target_recall": (0.01, 1.0),
    "lists": (0, inf),
    "max_probes": (0, inf),
    "max_partners": (1, inf),
    "dim": (1, 4096),
    "hidden": (1, 65_536),
    "depth": (0, 64),
    "temperature": (1e-6, inf),
    "batch": (2, inf),
    "steps": (0, inf),
    "learning_rate": (1e-9, inf),
    "patience": (1, inf),
    "train_rows": (1, inf),
    "pca_below": (0, inf),
    "workers": (0, inf),
    "memory_gb": (1e-6, inf),
    "cache_gb": (0.0, inf),
    "seed": (0, 2**63 - 1),
}

# Value of `compute`: this machine.
LOCAL = "local"
# Those that say how a run works on this machine, and not what it finds.
OF_MACHINE = ("device", "compute", "workers", "memory_gb", "cache", "cache_gb", "check")


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes
    ----------
    max_distance
        Two rows are duplicates when the squared L2 distance of their L2-normalised raw
        features is at most this (2 - 2 cosine). 0.1 is cosine 0.95.
    target_recall
        Share of the pairs within `max_distance` that calibration must reach.
    codec
        What the index stores of a row: PQ4, PQ8, PQ16, PQ32, SQ8, SQfp16; `auto` is PQ8, and PQ16
        where lists are long, from 25 million rows on.
    lists
        Inverted lists; 0 chooses from the number of rows.
    max_probes
        Inverted lists that a row may probe at the most; 0 chooses from the number of rows: 8 from a
        million on, more below, where lists are short.
    max_partners
        Earlier partners that a row keeps at the most, besides what holds its group together.
    model
        Where the net comes from: `train`, `published` (what `snip fetch model` fetched), or a file
        with weights.
    dim
        Numbers of a SNIP feature.
    hidden
        Width of the hidden layers of the SNIP net.
    depth
        Number of hidden layers of the SNIP net.
    temperature
        Of the softmax in training: the smaller, the nearer the neighbours that count.
    batch
        Rows of a training step.
    steps
        Training steps at the most; 0 chooses from the number of rows.
    learning_rate
        Of the training, at its highest.
    patience
        Evaluations without a gain after which training stops.
    train_rows
        Rows read to train the net and the index, at the most.
    pca_below
        With fewer rows than this the net is a PCA: too little data to train on.
    tier
        The finest features that decide about pairs: `raw`, `snip` (compressed features) or
        `codes` (the index alone); the coarser ones need no raw features, and are less exact.
    keep
        Which copy stays: `neighbours`, `first`, or an expression such as
        `largest(original_width*original_height)` over metadata columns.
    device
        auto, cpu or cuda. `auto` takes a GPU where torch sees one; with eight cores or more not
        for the join, where it is no faster than they are.
    compute
        Where the heavy stations work on their shards: `local`, or the address of a Dask scheduler
        (`tcp://host:8786`) whose workers see the output folder by the same url or path.
    workers
        Threads that compute; 0 takes every core. Reading of metadata and writing of tables have a
        few of their own.
    memory_gb
        Memory that a station may plan with, in GiB. It also bounds the rows that train the net.
    cache
        Where copies of remote features lie; empty: in the output folder.
    cache_gb
        How many GB these copies may take before those not used for longest are removed.
    check
        How outputs are checked before a later station reads them: `recent` compares checksums,
        but for files that held within the last week and have not changed since; `full` compares
        each file once in every process; `size` looks at sizes only.
    pictures
        What the report shows: `all` pictures, also those that hosts on the web have, `local` ones,
        so that no host is asked, or `none`.
    seed
        Of everything random.

    Raises
    ------
    BadInputError
        A number is out of its `BOUNDS`.
    """

    max_distance: float = 0.1
    target_recall: float = 0.995
    codec: str = "auto"
    lists: int = 0
    max_probes: int = 0
    max_partners: int = 1000
    model: str = "train"
    dim: int = 128
    hidden: int = 512
    depth: int = 1
    temperature: float = 0.045
    batch: int = 1024
    steps: int = 0
    learning_rate: float = 2e-3
    patience: int = 5
    train_rows: int = 262_144
    pca_below: int = 10_000
    tier: str = "raw"
    keep: str = "neighbours"
    device: str = "auto"
    compute: str = LOCAL
    workers: int = 0
    memory_gb: float = 4.0
    cache: str = ""
    cache_gb: float = 50.0
    check: str = "recent"
    pictures: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, largest) in BOUNDS.items():
            value = getattr(self, name)
            if not (least <= value <= largest and isfinite(value)):
                most = "" if largest == inf else f" and at most {largest:g}"
                kind = "" if isfinite(value) else "finite and "
                raise BadInputError(f"{name} {value}: it must be {kind}at least {least:g}{most}.")
