"""The numbers that the pages show, read from the outputs and their manifests."""

from __future__ import annotations

import dataclasses
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from snip_assets.engine import audit, choices, recut
from snip_assets.engine.choices import AUTO
from snip_assets.engine.errors import StaleOutputError
from snip_assets.engine.layout import STATIONS
from snip_assets.engine.metadata import URL_NAMES, Metadata, as_text, find_column
from snip_assets.engine.pair_files import of_groups, stream
from snip_assets.engine.run import INDEX_SETTINGS, MODEL_SETTINGS, PAIR_SETTINGS, Run
from snip_assets.engine.storage.files import Manifest, digest_of, open_npy, read_manifest, require
from snip_assets.engine.storage.parquet_source import parquet_file

# Work that grows with the data is bounded: beyond these numbers a sample or fewer points.
MOST_DOMAIN_ROWS = 100_000
MOST_MATRIX = 16
MOST_DOMAINS = 20
PACKAGES = ("snip_assets", "numpy", "torch", "faiss-cpu", "numba", "pyarrow", "dagster")


def as_made(run: Run) -> Run:
    """The run with the settings that its outputs were made with, as far as they name them.

    Raises
    ------
    StaleOutputError
        There are no groups, or they were made with another keep rule than the settings say.
    """
    groups = require(run.layout.duplicate_groups, "duplicate_groups")
    facts = [m.facts for _, m in pair_manifests(run) if "max_distance" in m.facts]
    most = min((f["max_distance"] for f in facts), default=run.settings.max_distance)
    tier = facts[0]["tier"] if facts else run.settings.tier
    keep = groups.facts.get("keep", run.settings.keep)
    known = _recorded(run) | {"max_distance": most, "tier": tier, "keep": keep}
    made = Run(run.layout, dataclasses.replace(run.settings, **known))
    if made.digest(("keep", "max_distance")) == groups.inputs["settings"]:
        return made
    raise StaleOutputError(
        f"{run.layout.duplicate_groups}: made with another keep rule or threshold, or the pairs of "
        f"some shards were (max_distance {most:g} now); give the same --keep, or let `snip dedup`, "
        "or the job `arrival` over all shards, make again what differs."
    )


def _recorded(run: Run) -> dict[str, Any]:
    """Settings that the outputs themselves name."""
    model, index = (read_manifest(p) for p in (run.layout.snip_model, run.layout.trained_index))
    known = dict(model.facts.get("settings", {})) if model else {}
    known |= {"codec": index.facts["codec"]} if index and "codec" in index.facts else {}
    names = {field.name for field in dataclasses.fields(run.settings)}
    return {name: value for name, value in known.items() if name in names}


def made_otherwise(run: Run) -> list[str]:
    """Stations whose output was made with other settings than those of the run."""
    made = {
        "snip_model": (run.layout.snip_model, MODEL_SETTINGS),
        "trained_index": (run.layout.trained_index, INDEX_SETTINGS),
        **{f"duplicate_pairs {k}": (run.layout.duplicate_pairs(k), PAIR_SETTINGS)
           for k in run.registry.keys[:1]},
    }  # fmt: skip
    # What the outputs name is what was chosen, where the settings may have left it open.
    left_open = dataclasses.asdict(run.settings) | {"codec": AUTO}
    found = ((name, read_manifest(path), names) for name, (path, names) in made.items())
    return [
        name
        for name, manifest, names in found
        if manifest
        and manifest.inputs.get("settings")
        not in (run.digest(names), digest_of({name: left_open[name] for name in names}))
    ]


def pair_manifests(run: Run) -> list[tuple[str, Manifest]]:
    """Shards that have pairs, with the manifests of these."""
    found = ((key, read_manifest(run.layout.duplicate_pairs(key))) for key in run.registry.keys)
    return [(key, manifest) for key, manifest in found if manifest is not None]


def pair_files(run: Run) -> list[Path]:
    """Files of pairs that there are."""
    return [run.layout.duplicate_pairs(key) for key, _ in pair_manifests(run)]


def manifests(run: Run, station: str) -> list[Manifest]:
    """Manifests of a station's outputs that there are."""
    paths = run.layout.outputs(station, run.registry.keys)
    return [m for path in paths if (m := read_manifest(path)) is not None]


def stations(run: Run) -> list[dict[str, Any]]:
    """Time, size and (where it was noted) memory of each station."""
    rows = []
    for name in STATIONS:
        found = manifests(run, name)
        seconds = sum(m.facts.get("seconds", 0.0) for m in found)
        peaks = [m.facts["peak_memory"] for m in found if m.facts.get("peak_memory")]
        rows.append(
            {
                "station": name,
                "outputs": len(found),
                "seconds": seconds,
                "rate": run.registry.rows / seconds if seconds else None,
                "bytes": sum(m.bytes for m in found),
                "memory": max(peaks, default=None),
            }
        )
    return rows


def quality(run: Run) -> dict[str, audit.Interval]:
    """Precision of pairs and recall against exact search, with their intervals."""
    seed = run.settings.seed
    found = {
        "precision": audit.last_precision(run, choices.AUDITED_PAIRS, seed),
        "recall": audit.last_recall(run, choices.AUDITED_ROWS, seed),
    }
    return {name: value for name, value in found.items() if value.trials}


def versions() -> dict[str, str]:
    """What it was made with."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = package_version(name)
        except PackageNotFoundError:
            continue
    return found


def group_sizes(run: Run) -> list[tuple[int, int]]:
    """(size, how many groups), by size."""
    counts: dict[int, int] = {}
    with parquet_file(run.layout.duplicate_groups / "groups.parquet") as file:
        for batch in file.iter_batches(columns=["size"]):
            sizes, times = np.unique(batch.column(0).to_numpy(), return_counts=True)
            for size, number in zip(sizes.tolist(), times.tolist(), strict=True):
                counts[size] = counts.get(size, 0) + number
    return sorted(counts.items())


def pair_distances(run: Run) -> tuple[list[float], list[int]]:
    """Edges and counts of the distances of near pairs: exact copies are left out.

    Shards whose pairs were found with a larger threshold, and so counted otherwise, are too.
    """
    most = run.settings.max_distance
    facts = [m.facts for _, m in pair_manifests(run) if m.facts.get("max_distance") == most]
    counts = np.sum([f["distances"] for f in facts], axis=0) if facts else np.zeros(1, int)
    counts[0] -= sum(f["exact_copies"] for f in facts)
    return np.linspace(0, most, len(counts) + 1).tolist(), counts.tolist()


def thresholds(run: Run) -> tuple[list[dict[str, Any]], float]:
    """What smaller thresholds would drop, the last one being the run itself.

    Where there are many pairs, those of random groups are looked at, and what they give is scaled
    to what the run gave.

    Returns
    -------
    cuts
        As `recut.curve` gives them.
    share
        Of the groups that were looked at, about.
    """
    files, most, folder = pair_files(run), run.settings.max_distance, run.layout.duplicate_groups
    pairs = sum(m.facts["pairs"] for _, m in pair_manifests(run))
    share = min(1.0, choices.THRESHOLD_PAIRS / max(1, pairs))
    # Rows in pairs, at the most and about.
    paired = min(run.registry.rows, 2 * choices.THRESHOLD_PAIRS)
    with tempfile.TemporaryDirectory(prefix=".tmp-") as spill:
        if share < 1:
            labels, sample = open_npy(folder / "labels.npy"), Path(spill) / "pairs.parquet"
            files = [of_groups(files, labels, share, run.settings.seed, sample)]
        cuts = recut.curve(
            files,
            run.registry.rows,
            recut.even_steps(most, choices.THRESHOLDS),
            rule=run.settings.keep,
            metadata=Metadata.of(run.registry),
            copies=run.copies_by_hash(),
            workers=choices.groupings(paired, run.settings),
        )
    if share < 1:
        facts = {**require(folder, "duplicate_groups").facts, "pairs": pairs}
        _scale(cuts, {name: facts[name] for name in ("pairs", "groups", "dropped")})
    return cuts, share


def _scale(cuts: list[dict[str, Any]], whole: dict[str, int]) -> None:
    """Bring counts of a sample up to those of the whole, which the last one must be."""
    for name, count in whole.items():
        factor = count / max(1, cuts[-1][name])
        for cut in cuts:
            cut[name] = round(cut[name] * factor)


def shard_matrix(run: Run) -> tuple[list[str], np.ndarray]:
    """Pairs between shards: int64[n, n], later row down, earlier row across.

    Beyond 16 shards, neighbours are taken together.
    """
    registry = run.registry
    number = min(MOST_MATRIX, len(registry.shards))
    cuts = np.linspace(0, len(registry.shards), number + 1).astype(int)
    edges = registry.offsets[cuts]
    counts = np.zeros((number, number), np.int64)
    for block in stream(pair_files(run), registry.rows, "pairs between shards"):
        later = np.searchsorted(edges, block.row, "right") - 1
        earlier = np.searchsorted(edges, block.earlier_row, "right") - 1
        flat = np.bincount(later * number + earlier, minlength=number * number)
        counts += flat.reshape(number, number)
    keys = registry.keys
    names = [keys[a] if b - a == 1 else f"{keys[a]}–{keys[b - 1]}" for a, b in pairwise(cuts)]
    return names, counts


def domains(run: Run) -> tuple[list[dict[str, Any]], int]:
    """Rows and dropped rows for each host of the urls, by dropped rows; and rows looked at.

    Looks at whole row groups of random shards, some hundred thousand rows at the most.
    """
    drop = open_npy(run.layout.dup_bitmap / "dup_bitmap.npy")
    rows: dict[str, int] = {}
    gone: dict[str, int] = {}
    looked_at = 0
    generator = np.random.default_rng(run.settings.seed)
    for ordinal in generator.permutation(len(run.registry.shards)):
        shard = run.registry.shards[ordinal]
        if shard.stop > len(drop):  # registered after the last decision
            continue
        with parquet_file(shard.metadata) as file:
            column = find_column(file.schema_arrow, URL_NAMES)
            if column is None:
                continue
            start = shard.start
            for batch in file.iter_batches(columns=[column]):
                if looked_at >= MOST_DOMAIN_ROWS:
                    return _largest(rows, gone), looked_at
                hosts = _hosts(as_text(shard.metadata, pa.chunked_array([batch.column(0)])))
                dropped = pa.array(np.asarray(drop[start : start + len(batch)]))
                _count(rows, hosts)
                _count(gone, hosts.filter(dropped))
                start, looked_at = start + len(batch), looked_at + len(batch)
    return _largest(rows, gone), looked_at


def _hosts(urls: pa.ChunkedArray) -> pa.Array:
    pattern = r"^https?://(?:[^/?#@]*@)?(?:www\.)?(?P<host>\[[^/?#\]]*\]|[^\[\]/:?#]+)"
    host = pc.extract_regex(pc.utf8_lower(urls), pattern)
    found = pc.struct_field(host, "host").combine_chunks()
    return pc.fill_null(found, "(no host: relative or other)")


def _count(counts: dict[str, int], hosts: pa.Array) -> None:
    for entry in hosts.value_counts().to_pylist():
        counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]


def _largest(rows: dict[str, int], gone: dict[str, int]) -> list[dict[str, Any]]:
    names = sorted(rows, key=lambda host: (-gone.get(host, 0), -rows[host], host))[:MOST_DOMAINS]
    return [
        {
            "host": name,
            "rows": rows[name],
            "dropped": gone.get(name, 0),
            "share": gone.get(name, 0) / rows[name],
        }
        for name in names
    ]
