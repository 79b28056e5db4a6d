"""What Dagster shows of the report: how to open it, main numbers, threshold curve, pictures."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

import dagster as dg

from snip_assets.engine.layout import Layout
from snip_assets.engine.remote_outputs import named
from snip_assets.engine.storage.files import Manifest
from snip_assets.engine.storage.working_copies import here

from . import plots
from .metadata import ROWS, SIZE, of_cost

_TYPES = {".jpg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp"}
LARGEST_PICTURE = 1 << 15


def of_report(layout: Layout, manifest: Manifest) -> dg.MaterializeResult[None]:
    """The result of the asset `dedup_report`."""
    index, out = (layout.dedup_report / "index.html").resolve(), named(layout.root.resolve())
    facts = manifest.facts
    title, axes = "rows dropped by threshold", ("threshold", "rows dropped")
    metadata: dict[str, Any] = {
        # Browsers open no file from a page that a server sent.
        "open_with": dg.MetadataValue.text(shlex.join(["snip", "report", "--open", "--out", out])),
        "path": dg.MetadataValue.path(named(index)),
        "preview": dg.MetadataValue.md(_numbers(manifest)),
        "threshold_curve": dg.MetadataValue.md(plots.curve(facts["thresholds"], title, *axes)),
        "most_copied": dg.MetadataValue.md(_pictures(layout.dedup_report, facts["preview"])),
        ROWS: int(facts["rows"]),
        "dropped": int(facts["dropped"]),
        SIZE: manifest.bytes,
        **of_cost(facts),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(manifest.version))


def _numbers(manifest: Manifest) -> str:
    facts = manifest.facts
    share = facts["dropped"] / max(1, facts["rows"])
    lines = [f"**{facts['dropped']:,} of {facts['rows']:,} rows dropped ({share:.1%})**", ""]
    lines += ["| | share | 95% from | to | sampled |", "| --- | --- | --- | --- | --- |"]
    for name, (estimate, low, high, trials) in facts["quality"].items():
        lines.append(f"| {name} | {estimate:.4f} | {low:.4f} | {high:.4f} | {trials:,} |")
    return "\n".join(lines)


def _pictures(folder: Path, shown: list[list[str | int]]) -> str:
    """Small pictures inline, with the size of their group; addresses of the data set stay out."""
    parts = []
    for source, size in shown:
        path = here(folder / str(source))
        if path.is_file() and path.stat().st_size <= LARGEST_PICTURE:
            data = base64.b64encode(path.read_bytes()).decode()
            kind = _TYPES[path.suffix]
            parts.append(f"![{size} rows](data:image/{kind};base64,{data}) {size:,} rows")
    return " ".join(parts) or "no small local pictures; see the page"
