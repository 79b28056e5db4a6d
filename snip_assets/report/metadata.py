"""What Dagster shows of an output: its manifest as materialisation metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from snip_assets.engine import stations
from snip_assets.engine.storage.files import Manifest, read_manifest
from snip_assets.engine.storage.parquet_source import parquet_file, readable
from snip_assets.versions import version

from . import plots
from .harmless import harmless

# Beyond this number of shards in one run the records get totals only: Dagster takes some 40 ms
# to write metadata of its own for each of thousands of partitions.
MOST_SHARD_RECORDS = 256
# And beyond this one there is a picture of all of them: to draw one takes up to a quarter of a
# second.
MOST_SHARD_PICTURES = 8

# Bytes of a column that are read for its first rows.
PIECE = 1 << 16

# Facts that are pictures or tables of their own, or too long to read.
_HIDDEN = {
    *("bytes", "pair_versions", "metadata_states", "shards_missing", "shards_seen"),
    *("curve", "list_sizes", "distances"),
    *("kept_rows", "dropped_rows", "kept_rows_count", "dropped_rows_count"),
}


_WITH_UNIT = {"peak_memory": "peak_memory_bytes"}

# Names that the page of an asset shows as its rows and its storage, as `1.2 MB`.
ROWS, SIZE = "dagster/row_count", "dagster/size_bytes"
# What the page shows is the latest record: of a shard, it would stand there for all of them.
SHARD_ROWS, SHARD_SIZE = "dagster/partition_row_count", "bytes"


def of_manifest(
    manifest: Manifest, *, pictures: bool = True, names: tuple[str, str] = (ROWS, SIZE)
) -> dict[str, Any]:
    """Facts of an output as metadata values, curves and histograms as pictures.

    Parameters
    ----------
    names
        Of its rows and of its bytes.
    """
    values: dict[str, Any] = {names[1]: manifest.bytes, "version": manifest.version}
    for name, fact in manifest.facts.items():
        if name == "rows":
            values[names[0]] = int(fact)
        elif name in _HIDDEN or fact is None:
            continue
        elif isinstance(fact, (bool, int, float, str)):
            values[_WITH_UNIT.get(name, name)] = fact
        else:
            values[name] = dg.MetadataValue.json(fact)
    return values | (_pictures(manifest.facts) if pictures else {})


def _pictures(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dg.MetadataValue.md(p) for name, p in plots.of_facts(facts).items()}


def of_cost(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What making an output took."""
    names = ("seconds", "peak_memory")
    return {_WITH_UNIT.get(name, name): facts[name] for name in names if name in facts}


def totals(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Sums over the shards of one run."""
    values: dict[str, Any] = {
        "shards_in_run": len(manifests),
        "bytes_in_run": sum(m.bytes for m in manifests.values()),
    }
    for name in ("rows", "pairs", "kept", "dropped", "seconds"):
        numbers = [m.facts[name] for m in manifests.values() if name in m.facts]
        if numbers:
            values[f"{name}_in_run"] = round(sum(numbers), 3)
    if peaks := [m.facts["peak_memory"] for m in manifests.values() if "peak_memory" in m.facts]:
        values["peak_memory_bytes_in_run"] = max(peaks)
    counted = [m.facts for m in manifests.values() if "distances" in m.facts]
    if len(counted) > 1 and len({facts["max_distance"] for facts in counted}) == 1:
        together = np.sum([facts["distances"] for facts in counted], axis=0).tolist()
        pictures = _pictures({**counted[0], "distances": together})
        values |= {f"{name}_in_run": picture for name, picture in pictures.items()}
    return values


def sample_rows(path: Path, count: int = 8) -> dg.MetadataValue:
    """The first rows of a parquet file as a markdown table; texts cut, markup made harmless."""
    with parquet_file(path, piece=PIECE) as file, readable(path):
        # Of one row group: Arrow joins no dictionaries in nested columns of several.
        first = [*range(file.num_row_groups)][:1]
        batch = next(file.iter_batches(batch_size=count, row_groups=first), None)
    if batch is None:
        return dg.MetadataValue.md("*no rows*")
    table = pa.Table.from_batches([batch]).slice(0, count)
    lines = ["| " + " | ".join(map(_cell, table.column_names)) + " |"]
    lines.append("|" + " --- |" * table.num_columns)
    for row in table.to_pylist():
        lines.append("| " + " | ".join(_cell(v) for v in row.values()) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = harmless(text)[:60]
    return "`" + text.replace("`", "'").replace("|", "¦") + "`" if text else ""


def of_whole(
    context: dg.AssetExecutionContext, manifest: Manifest, version: str | None = None, **more: Any
) -> dg.MaterializeResult[None]:
    """The result of an asset without partitions."""
    drawn = _drawn(context, manifest)
    return dg.MaterializeResult(
        metadata=of_manifest(manifest, pictures=not drawn) | drawn | more,
        data_version=dg.DataVersion(version or manifest.version),
    )


def _drawn(context: dg.AssetExecutionContext, manifest: Manifest) -> dict[str, Any]:
    """Pictures of the last record, if it is of this very output: to draw one takes some 30 ms."""
    event = context.instance.get_latest_materialization_event(context.asset_key)
    record = event.asset_materialization if event else None
    known = record.metadata if record else {}
    if "version" not in known or known["version"].value != manifest.version:
        return {}
    return {name: value for name, value in known.items() if plots.is_picture(value.value)}


def of_shards(
    context: dg.AssetExecutionContext,
    manifests: Mapping[str, Manifest],
    *made_with: str,
    samples: Mapping[str, Path] | None = None,
) -> dg.MaterializeResult[None]:
    """The result of an asset over some shards; see `versions.made_with`."""
    if len(manifests) <= MOST_SHARD_RECORDS:
        for key, manifest in manifests.items():
            pictures = len(manifests) <= MOST_SHARD_PICTURES
            values = of_manifest(manifest, pictures=pictures, names=(SHARD_ROWS, SHARD_SIZE))
            if samples and key in samples:
                values["sample_rows"] = sample_rows(samples[key])
            context.add_asset_metadata(values, partition_key=key)
    return dg.MaterializeResult(
        metadata=totals(manifests),
        data_version=dg.DataVersion(version(made_with)),
    )


def missing(run: stations.Run, output_of: Callable[[str], Path]) -> dict[str, Any]:
    """Which registered shards an asset over all shards did not find, by key."""
    absent = [key for key in run.registry.keys if read_manifest(output_of(key)) is None]
    read = len(run.registry.keys) - len(absent)
    return {"shards_read": read, "shards_missing": ", ".join(absent) or "none"}


def of_interval(found: Any) -> dict[str, Any]:
    """An estimated share with its 95% Wilson interval (see engine.audit); no trials, no share."""
    if not found.trials:
        return {"trials": 0}
    return {
        "estimate": float(found.estimate),
        "interval_low": float(found.low),
        "interval_high": float(found.high),
        "successes": int(found.successes),
        "trials": int(found.trials),
    }
