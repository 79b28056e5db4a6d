"""How the plan held: predicted and measured seconds of each station, noted beside the outputs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from . import choices, plan, rates
from .layout import Layout
from .settings import Settings
from .shards import Registry, Source, load
from .storage.files import read_manifest, write_json
from .storage.locks import lock
from .storage.remote_files import is_remote

# Below this, starting up takes longer than the work that the plan knows of.
FEWEST_ROWS = 100_000
FILE = "forecast.json"


def source_rate(layout: Layout, source: Source) -> float:
    """Bytes a second of the features, before a first run; 0 where there was one, or of urls.

    Afterwards they may lie in memory.
    """
    if layout.registry.exists() or is_remote(source.features):
        return 0.0
    try:
        return rates.reading(plan.feature_files(source.features))
    except OSError:
        # Registration tells which file it is, and what to do.
        return 0.0


def record(
    layout: Layout,
    settings: Settings,
    seconds: dict[str, float],
    machine: rates.Rates | None = None,
    source_rate: float = 0.0,
) -> dict[str, Any]:
    """Compare a whole run with its plan, and add that to `forecast.json` in the output folder.

    Parameters
    ----------
    seconds
        Name of a station (or of a check) -> seconds that it took.
    machine
        Its rates; default: measured now.
    source_rate
        Bytes a second of the raw features before the run; 0: as the disk.

    Returns
    -------
    rows, rates, source_rate, stations (predicted and measured seconds), predicted, measured, error:
    the sum without the training of the net, whose end nobody knows before.
    """
    registry = load(layout)
    itemsize = np.dtype(registry.shards[0].dtype).itemsize
    settings = choices.settled(registry.rows, settings)
    machine = machine or rates.measure(layout.root, registry.dim, settings)
    planned = plan.predict(
        registry.rows,
        registry.dim,
        machine,
        settings,
        itemsize=itemsize,
        shards=len(registry.shards),
        metadata_bytes=_metadata_bytes(layout, registry),
        source_rate=source_rate,
    )
    names = {s.name for s in planned.stations}
    taken = {name: value for name, value in seconds.items() if name in names}
    taken["checks"] = sum(value for name, value in seconds.items() if name not in names)
    rows: list[dict[str, Any]] = [
        {"station": s.name, "predicted": s.seconds, "measured": taken.get(s.name, 0.0)}
        for s in planned.stations
    ]
    counted = [r for r in rows if r["station"] != "snip_model"]
    predicted = sum(r["predicted"] for r in counted)
    measured = sum(r["measured"] for r in counted)
    found = {
        "rows": registry.rows,
        "dim": registry.dim,
        "rates": asdict(machine),
        "source_rate": source_rate,
        "stations": rows,
        "predicted": predicted,
        "measured": measured,
        "error": predicted / max(measured, 1e-9) - 1,
    }
    with lock(layout.root / FILE):
        write_json(layout.root / FILE, [*recorded(layout), found])
    return found


def _metadata_bytes(layout: Layout, registry: Registry) -> float:
    """Bytes of a row of metadata, as the station saw the files; a usual number where it did not."""
    seen = [read_manifest(layout.metadata(key)) for key in registry.keys]
    if not registry.rows or None in seen:
        return plan.METADATA_BYTES
    return sum(m.facts["bytes"] for m in seen if m is not None) / registry.rows


def recorded(layout: Layout) -> list[dict[str, Any]]:
    """All comparisons of an output folder, oldest first."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads((layout.root / FILE).read_text())
    return []
