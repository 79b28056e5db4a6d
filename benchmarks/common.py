"""What the benchmarks share: a table, a JSON file, the machine, peak memory."""

from __future__ import annotations

import json
import platform
import resource
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from snip_assets.engine import threads

RESULTS = Path(__file__).parent / "results"


def cores() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"processor": name, "cores": threads.count(), "memory_gib": memory}


def peak_gb() -> float:
    """Peak resident memory of this process, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of equal or differing keys as a table."""
    names: list[str] = []
    for row in rows:
        names += [name for name in row if name not in names]
    shown = Table(*names, title=title)
    for row in rows:
        shown.add_row(*(_cell(row.get(name)) for name in names))
    Console(width=160).print(shown)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(name: str, value: Any) -> None:
    """Write a result as JSON beside the others."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"written: {path.relative_to(Path(__file__).parent.parent)}")
