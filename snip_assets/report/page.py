"""The static page of the report: what was found, in one file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq

from snip_assets.engine import shards
from snip_assets.engine.files import (
    Manifest,
    atomic_path,
    current,
    digest_of,
    read_manifest,
    seal,
)
from snip_assets.engine.layout import Layout

from . import plots
from .summary import summary
from .terminal import text

_TEMPLATES = Path(__file__).parent / "templates"
LARGEST_GROUPS = 20


def write(layout: Layout) -> Manifest:
    """Write `dedup_report/index.html` unless it is current.

    Raises
    ------
    StaleOutputError
        Something that it shows is not made yet.
    """
    registry = shards.load(layout)
    shown = [layout.snip_index, layout.duplicate_groups, layout.dup_bitmap]
    shown += [layout.duplicate_pairs(key) for key in registry.keys]
    versions = [m.version if (m := read_manifest(path)) else "" for path in shown]
    template = (_TEMPLATES / "report.html").read_text()
    inputs = {"shown": digest_of(versions), "template": digest_of(template)}
    if (manifest := current(layout.report, inputs)) is not None:
        return manifest
    values = summary(layout)
    with atomic_path(layout.report) as folder:
        folder.mkdir(parents=True)
        (folder / "index.html").write_text(_render(template, layout, values))
    return seal(layout.report, inputs, rows=values["rows"], dropped=values["dropped"])


def _render(template: str, layout: Layout, values: dict[str, Any]) -> str:
    pictures = {"sizes of groups": plots.group_sizes(layout.duplicate_groups / "groups.parquet")}
    for output in (layout.snip_model, layout.trained_index, layout.snip_index):
        if (manifest := read_manifest(output)) is not None:
            pictures |= plots.of_facts(manifest.facts)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["text"] = text
    return environment.from_string(template).render(
        values={k: v for k, v in values.items() if k != "outputs"},
        groups=_largest_groups(layout.duplicate_groups / "groups.parquet"),
        pictures={name: plots.source_of(markdown) for name, markdown in pictures.items()},
    )


def _largest_groups(path: Path) -> list[dict[str, Any]]:
    """The largest groups, a batch of the file in memory at a time."""
    columns = ["group", "size", "kept"]
    largest: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            rows = largest + batch.sort_by([("size", "descending")]).slice(0, 20).to_pylist()
            largest = sorted(rows, key=lambda row: (-row["size"], row["group"]))[:LARGEST_GROUPS]
    return largest
