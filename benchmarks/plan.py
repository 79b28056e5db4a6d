"""The planner's table in docs/scale.md, and the measured tables beside it.

    python benchmarks/plan.py [--folder DIR]

Measures the rates of this machine, plans 10 million to 2.17 billion rows on 2, 16 and 64 cores,
and writes what lies between the marks in docs/scale.md; what scale.py, merge.py and incremental.py
left in benchmarks/results goes there too (scale_16.json is what scale.py wrote on 16 cores), and
what fanout.py left to docs/several-machines.md.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, _cell, cores, table, write

from snip_assets.engine import choices, plan, rates
from snip_assets.engine.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "scale.md"
# What an H200 does in compression as a whole when 16 cores feed it (`gpu.py`).
GPU = 1.65
# Columns of two runs side by side, and what they are in one.
COLUMNS = {"s": "seconds", "cores busy": "cores", "resident GiB": "resident GiB"}
SIZES = (10_000_000, 100_000_000, 1_000_000_000, 2_169_580_984)
# Cores, memory in GiB, disk in GB/s, TFLOP/s of a GPU.
MACHINES = ((2, 24, 1.0, 0.0), (16, 32, 2.0, 0.0), (16, 32, 2.0, GPU), (64, 256, 6.0, 0.0))


def planned(measured: rates.Rates, dim: int) -> list[dict[str, Any]]:
    rows = []
    for size in SIZES:
        for count, memory, disk, gpu in MACHINES:
            found = plan.predict(
                size,
                dim,
                measured,
                cores=count,
                memory_gb=memory,
                disk_gb_per_s=disk,
                gpu_tflops=gpu,
            )
            slowest = max(found.stations, key=lambda s: s.seconds)
            rows.append(
                {
                    "rows": size,
                    "cores": count,
                    "memory GiB": memory,
                    "disk GB/s": disk,
                    "GPU TFLOP/s": gpu or None,
                    "hours": found.seconds / 3600,
                    "most of it": f"{slowest.name} ({slowest.seconds / found.seconds:.0%})",
                    "peak GiB": found.peak_gib,
                    "outputs GB": found.disk_gb,
                    "index GB": next(s.write_gb for s in found.stations if s.name == "snip_index"),
                    "lists": found.lists,
                    "codec": found.codec,
                    "fits": "no" if found.peak_gib > memory else "yes",
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(n)) for n in names) + " |" for row in rows]
    return "\n".join(lines)


def result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def fill(mark: str, text: str, path: Path = PAGE) -> None:
    """Put a text between `<!-- mark -->` and `<!-- end -->`."""
    page = path.read_text()
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    page, count = pattern.subn(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page)
    assert count == 1, mark
    path.write_text(page)


def machine(found: dict[str, Any]) -> str:
    own = found["machine"]
    return f"{own['processor']}, {own['cores']} cores, {own['memory_gib']} GiB."


def beside(here: dict[str, Any], there: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a station of the same run without and with a GPU."""
    columns = {f"{here['machine']['cores']} cores": here, there["machine"]["gpu"]: there}
    runs = {name: found["sizes"][-1] for name, found in columns.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        for station in run["stations"]:
            row = rows.setdefault(station["station"], {"station": station["station"]})
            row |= {f"{name}, {key}": station.get(old) for key, old in COLUMNS.items()}
    total = {f"{name}, s": run["without_training"] for name, run in runs.items()}
    return [*rows.values(), {"station": "in all, training of the net apart", **total}]


def measured_tables() -> None:
    if wide := result("scale_1024"):
        fill("scale_1024", f"{machine(wide)}\n\n{markdown(wide['summary'])}")
    if scale := result("scale"):
        parts = [machine(scale), markdown(scale["summary"])]
        for size in scale["sizes"]:
            parts += [f"{size['rows']:,} rows:", markdown(size["stations"])]
        fill("scale", "\n\n".join(parts))
        held = [run[-1] for size in scale["sizes"] if (run := size.get("planned"))]
        keys = ("rows", "predicted", "measured", "error")
        if held:
            fill("forecast", markdown([{k: run[k] for k in keys} for run in held]))
    if (here := result("scale_16")) and (there := result("scale_cuda")):
        fill("scale_16", markdown(beside(here, there)))
    if merged := result("merge"):
        fill("merge", f"{machine(merged)}\n\n{markdown(merged['runs'])}")
    if added := result("incremental"):
        parts = [machine(added)]
        for size in added["sizes"]:
            shape = f"{size['shards']} shards of {size['rows_per_shard']:,} rows"
            parts += [
                f"{shape}{', through Dagster' * size['dagster']}:",
                markdown(size["stations"]),
            ]
        fill("incremental", "\n\n".join(parts))
    if late := result("arrival"):
        shape = f"{late['shards']} shards, {late['rows']:,} x {late['dim']}."
        fill("arrival", f"{machine(late)} {shape}\n\n{markdown(late['stations'])}")
    if spread := result("fanout"):
        shape = f"{spread['rows']:,} x {spread['dim']} in {spread['shards']} shards."
        text = f"{machine(spread)} {shape}\n\n{markdown(spread['stations'])}"
        fill("fanout", text, DOCS / "several-machines.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--folder", type=Path, default=Path("out"), help="On the disk to measure.")
    options = parser.parse_args()
    settings = choices.settled(SIZES[0], Settings())
    measured = rates.measure(options.folder, options.dim, settings)
    rows = planned(measured, options.dim)
    table("Plans (training of the net included)", rows)
    write("plan", {"machine": cores(), "rates": asdict(measured), "plans": rows})
    known = ", ".join(f"{name} {value:,.3g}" for name, value in asdict(measured).items())
    fill("plan", f"Rates of one core (disk: of all): {known}.\n\n{markdown(rows)}")
    measured_tables()


if __name__ == "__main__":
    main()
