"""What Dagster's UI shows of the report: a link, the main numbers, the threshold curve."""

from __future__ import annotations

from typing import Any

import dagster as dg

from snip_assets.engine.files import Manifest
from snip_assets.engine.layout import Layout

from . import plots


def of_report(layout: Layout, manifest: Manifest) -> dict[str, Any]:
    """Metadata of the asset `dedup_report`."""
    index = (layout.report / "index.html").resolve()
    facts = manifest.facts
    lines = ["| | share | 95% from | to | of |", "| --- | --- | --- | --- | --- |"]
    for name, (estimate, low, high, trials) in facts["quality"].items():
        lines.append(f"| {name} | {estimate:.4f} | {low:.4f} | {high:.4f} | {trials:,} |")
    share = facts["dropped"] / max(1, facts["rows"])
    text = f"**{facts['dropped']:,} of {facts['rows']:,} rows dropped ({share:.1%})**"
    title, axes = "rows dropped by threshold", ("threshold", "rows dropped")
    return {
        "page": dg.MetadataValue.url(index.as_uri()),
        "path": dg.MetadataValue.path(str(index)),
        "preview": dg.MetadataValue.md("\n".join([text, "", *lines])),
        "threshold_curve": dg.MetadataValue.md(plots.curve(facts["thresholds"], title, *axes)),
    }
