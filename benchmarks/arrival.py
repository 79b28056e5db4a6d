"""All shards but one, and then the last: as a user runs it, each in a process of its own.

    python benchmarks/arrival.py --folder BIG_DISK [--rows 100000000] [--shards 100] [--dim 128]

For data sets larger than memory, where what is read from the disk decides; a hundred million rows
of 128 numbers take 62 GB and, on two cores, 36 minutes. The second process begins as any other
does, with nothing in memory. What was generated stays in the folder, and is used again. Prints a
table and writes benchmarks/results/arrival.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import cores, table, write
from scale import AUDITS, CHECKS, NAMES, accuracy, data, share_of, stations_of, watched

from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.garbage import loading

TRAINING = "snip_model"


def child(place: Path, out: Path, limit: int) -> None:
    """Run the graph over so many shards; leave the times behind."""
    # As `snip dedup` does it.
    with loading():
        from snip_assets import graph, home
        from snip_assets.engine import forecast
        from snip_assets.resources import DataSet

    source = shards.Source(place / "img_emb", place / "metadata")
    dataset = DataSet.of(source, out, Settings())
    started = time.time()
    source_rate = forecast.source_rate(dataset.layout, source)
    outcome = graph.materialize(dataset, limit)
    wall = time.time() - started
    spans: dict[str, list[float]] = {}
    with home.instance(dataset.layout) as instance:
        for record in instance.get_run_records():
            for step in instance.get_run_step_stats(record.dagster_run.run_id):
                if (step.start_time or 0) >= started:
                    spans.setdefault(step.step_key, [step.start_time, step.end_time])
    if len(outcome.new) == limit:
        forecast.record(dataset.layout, dataset.settings, outcome.seconds, source_rate=source_rate)
    left = {"seconds": outcome.seconds, "wall": wall, "spans": spans, "checks": outcome.checks}
    (out / f"times-{limit}.json").write_text(json.dumps(left, default=str))


def run(place: Path, out: Path, limit: int, rows: int) -> dict[str, Any]:
    """Seconds of each station, of the whole process, and what it took of memory and disk."""
    command = [sys.executable, __file__, "--child", str(limit), "--folder", str(place)]
    started = time.perf_counter()
    samples = watched([*command, "--out", str(out)])
    whole = time.perf_counter() - started
    left = json.loads((out / f"times-{limit}.json").read_text())
    seconds = {name: s for name, s in left["seconds"].items() if name in NAMES}
    seconds[CHECKS] = sum(s for name, s in left["seconds"].items() if name not in NAMES)
    seconds["between steps"] = left["wall"] - sum(seconds.values())
    seconds["start of the process"] = whole - left["wall"]
    seconds["in all"] = whole
    seconds["in all, training of the net apart"] = whole - seconds[TRAINING]
    spans = {name: span for name, span in left["spans"].items() if name in NAMES}
    return {
        "seconds": seconds,
        "stations": stations_of(spans, samples, rows, {}),
        "checks": {name: share_of(left["checks"].get(name)) for name in AUDITS},
        "resident_gib": max(s["VmHWM"] for s in samples),
        "anon_gib": max(s["RssAnon"] for s in samples),
        "disk_read_gb": samples[-1]["read_bytes"] - samples[0]["read_bytes"],
    }


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a station: both runs, and their ratio."""
    details = [{s["station"]: s for s in run["stations"]} for run in (before, after)]
    rows = []
    for name, seconds in before["seconds"].items():
        row = {"station": name, "all before, s": seconds, "one more, s": after["seconds"][name]}
        row["share"] = row["one more, s"] / max(seconds, 1e-9)
        for title, detail in zip(("all before", "one more"), details, strict=True):
            row[f"{title}, disk read GB"] = detail.get(name, {}).get("disk read GB")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, options.out, options.child)
        return
    place = options.folder / f"{options.rows}x{options.dim}"
    source = data(place, options.rows, options.dim, options.shards)
    out = options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    before = run(place, out, options.shards - 1, options.rows)
    after = run(place, out, options.shards, options.rows)
    rows = compared(before, after)
    recall = accuracy(Layout(out), source)
    table(f"{options.rows:,} x {options.dim} in {options.shards} shards", rows)
    print(f"resident at most {before['resident_gib']:.2f} GiB; planted recall {recall}")
    print(f"audited: {before['checks']}")
    found = {"rows": options.rows, "dim": options.dim, "shards": options.shards, "stations": rows}
    write("arrival", {"machine": cores(), **found, "runs": [before, after], "recall": recall})


if __name__ == "__main__":
    main()
