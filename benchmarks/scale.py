"""The whole pipeline through Dagster at growing sizes: time, memory, disk, share of the bound.

    python benchmarks/scale.py --rows 300000 --rows 1000000 [--dim 768] [--shards S] [--hidden H]

Features are generated in shards (planted near-duplicates at known distances, see `synthetic.py`);
the graph runs as `snip dedup` runs it, in a process of its own that is watched from outside:
`anon` is the memory that it holds, `resident` counts the pages of memory-mapped files too, which
the system takes back when it needs room. The bound of a station is the time of its matrix products
at the float32 rate of this machine, measured before and after; `cores` is processor time by clock.
Recall and precision are held against the construction and against exact search for sampled rows.
Prints tables and writes benchmarks/results/scale.json (scale_1024.json for a net of that width,
scale_cuda.json with a GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import cores, table, write
from pipeline import planted
from synthetic import Generator

from snip_assets.engine import audit, shards, threads
from snip_assets.engine.compress import device_of
from snip_assets.engine.layout import STATIONS, Layout
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.rates import product_rate
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import read_manifest

ROWS_PER_SHARD = 100_000
EVERY = 0.05
CHECKS = "checks"
GROWTH = "cost per row ~ N^"
AUDITS = ("pair_precision", "query_recall")
SHARE = ("passed", "estimate", "interval_low", "interval_high", "successes", "trials")
NAMES = {*STATIONS, "decisions", "dedup_report"}


def generate(folder: Path, rows: int, dim: int, count: int, workers: int = 0) -> np.ndarray:
    """Shards on disk, made on all cores; returns the source of each row, -1 when not planted."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0, rows, count + 1).astype(np.int64)

    def work(number: int) -> np.ndarray:
        start = int(cuts[number])
        x, source = Generator(dim, int(cuts[number + 1]) - start).shard(number)
        np.save(folder / "img_emb" / f"img_emb_{number:05d}.npy", x)
        names = pa.array([f"http://example.org/{start + row}.jpg" for row in range(len(x))])
        side = pa.array(np.random.default_rng(number).integers(64, 2048, len(x)).astype(np.int32))
        pq.write_table(
            pa.table({"url": names, "caption": names, "original_width": side}),
            folder / "metadata" / f"metadata_{number:05d}.parquet",
        )
        return np.where(source >= 0, source + start, -1)

    return np.concatenate(list(threads.ordered_map(work, range(count), workers)))


def data(folder: Path, rows: int, dim: int, count: int) -> np.ndarray:
    """The data set of a size, made unless the folder holds it already."""
    made = folder / "source.npy"
    if not made.exists():
        started = time.perf_counter()
        source = generate(folder, rows, dim, count)
        np.save(made, source)
        # Or the system would still be writing it while the run is timed.
        os.sync()
        seconds = time.perf_counter() - started
        print(
            f"generated {rows:,} x {dim} in {seconds:.0f} s "
            f"({rows * dim * 2 / seconds / 1e6:.0f} MB/s)"
        )
    return np.load(made)


def child(folder: Path, out: Path, settings: Settings) -> None:
    """Run the graph; leave the times of its steps, checks and manifests behind."""
    from snip_assets import graph, home
    from snip_assets.engine import forecast
    from snip_assets.resources import DataSet

    source = shards.Source(folder / "img_emb", folder / "metadata")
    dataset = DataSet.of(source, out, settings)
    source_rate = forecast.source_rate(dataset.layout, source)
    outcome = graph.materialize(dataset)
    with home.instance(dataset.layout) as instance:
        record = instance.get_run_records(limit=1)[0]
        stats = instance.get_run_step_stats(record.dagster_run.run_id)
    spans = {s.step_key: [s.start_time, s.end_time] for s in stats}
    forecast.record(dataset.layout, dataset.settings, outcome.seconds, source_rate=source_rate)
    (out / "steps.json").write_text(
        json.dumps({"spans": spans, "checks": outcome.checks}, default=str)
    )


def watched(command: list[str]) -> list[dict[str, float]]:
    """Run a command to its end and sample its memory and traffic."""
    process = subprocess.Popen(command)
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        if (found := _sample(process.pid)) is not None:
            samples.append(found)
        time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"failed with code {process.returncode}: {' '.join(command)}")
    return samples


def _sample(pid: int) -> dict[str, float] | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        traffic = Path(f"/proc/{pid}/io").read_text()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    found: dict[str, float] = {"at": time.time()}
    found["cpu"] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    for line in (status + traffic).splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 2**20
        elif name in ("rchar", "wchar", "read_bytes", "write_bytes"):
            found[name] = int(value) / 1e9
    return found if "VmRSS" in found and "write_bytes" in found else None


def stations_of(
    spans: dict[str, list[float]], samples: list[dict[str, float]], rows: int, bound: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row a station: what was sampled between its start and end."""
    result = []
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1][0]):
        inside = [s for s in samples if start - EVERY <= s["at"] <= end + EVERY] or [
            min(samples, key=lambda s: abs(s["at"] - end))
        ]
        seconds = end - start
        first, last = inside[0], inside[-1]
        own = bound.get(name)
        result.append(
            {
                "station": name,
                "seconds": seconds,
                "rows/s": round(rows / max(seconds, 1e-3)),
                "cores": (last["cpu"] - first["cpu"]) / max(last["at"] - first["at"], EVERY),
                "anon GiB": max(s["RssAnon"] for s in inside),
                "resident GiB": max(s["VmRSS"] for s in inside),
                # Calls to the system, and the disk itself; memory maps show on the disk only.
                "read GB": last["rchar"] - first["rchar"],
                "disk read GB": last["read_bytes"] - first["read_bytes"],
                "write GB": last["wchar"] - first["wchar"],
                "disk write GB": last["write_bytes"] - first["write_bytes"],
                "bound s": own,
                "of bound": own / seconds if own else None,
            }
        )
    return result


def _checks_together(rows: list[dict[str, Any]], checks: set[str]) -> list[dict[str, Any]]:
    """Fold the asset checks into one row."""
    own = [row for row in rows if row["station"] in checks]
    rest = [row for row in rows if row["station"] not in checks]
    if not own:
        return rest
    folded: dict[str, Any] = {"station": CHECKS}
    for name in own[0]:
        values = [row[name] for row in own if isinstance(row[name], (int, float))]
        if name.endswith("GiB"):
            folded[name] = max(values)
        elif values and (name.endswith("GB") or name == "seconds"):
            folded[name] = sum(values)
    return [*rest, folded]


def bounds(layout: Layout, product_rate: float, settings: Settings) -> dict[str, float]:
    """Seconds of the matrix products of each station at the measured rate, from its own facts."""
    from snip_assets.engine.station_costs import flops

    registry = shards.load(layout)
    model = read_manifest(layout.snip_model)
    trained = read_manifest(layout.trained_index)
    pairs = read_manifest(layout.duplicate_pairs(registry.keys[-1]))
    if model is None or trained is None or pairs is None:
        return {}
    compared = sum(
        m.facts["compared_per_row"] * s.rows
        for s in registry.shards
        if (m := read_manifest(layout.duplicate_pairs(s.key)))
    )
    facts = trained.facts
    work = flops(registry.rows, registry.dim, facts["lists"], facts["rows_read"], settings)
    work["duplicate_pairs"] = 2.0 * compared * trained.facts["width"]
    return {name: value / product_rate for name, value in work.items()}


def accuracy(layout: Layout, source: np.ndarray) -> dict[str, Any]:
    """Recall of planted pairs (near ones, and exact copies) that were found as pairs."""
    registry = shards.load(layout)
    later, earlier = planted(shards.raw_features(registry), source)
    hits = 0
    for shard in registry.shards:
        low, high = np.searchsorted(later, [shard.start, shard.stop])
        found = read_pairs(layout.duplicate_pairs(shard.key))
        n = registry.rows
        keys = found.row.astype(np.int64) * n + found.earlier_row.astype(np.int64)
        hits += int(np.isin(later[low:high] * n + earlier[low:high], keys).sum())
    return audit.wilson(hits, len(later)).__dict__


def measure(options: argparse.Namespace, rows: int, folder: Path) -> dict[str, Any]:
    count = options.shards or max(1, -(-rows // ROWS_PER_SHARD))
    place = folder / f"{rows}x{options.dim}"
    source = data(place, rows, options.dim, count)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--child", str(place), "--out", out]
        # The speed of a machine drifts.
        rates = [product_rate(threads.count())]
        settings = _settings(options)
        command += ["--steps", str(settings.steps), "--hidden", str(settings.hidden)]
        samples = watched([*command, "--device", settings.device])
        rates.append(product_rate(threads.count()))
        rate = sum(rates) / 2
        layout = Layout(Path(out))
        left = json.loads((Path(out) / "steps.json").read_text())
        plan = Path(out) / "forecast.json"
        stages = stations_of(left["spans"], samples, rows, bounds(layout, rate, settings))
        stages = _checks_together(stages, {name for name in left["spans"] if name not in NAMES})
        near = accuracy(layout, source)
        planned = json.loads(plan.read_text()) if plan.exists() else None
    if not options.keep:
        for path in (*place.glob("*/*"), place / "source.npy"):
            path.unlink()
    return {
        "rows": rows,
        "shards": count,
        "product_flops": rates,
        "stations": stages,
        "planned": planned,
        "seconds": sum(s["seconds"] for s in stages),
        "without_training": sum(s["seconds"] for s in stages if s["station"] != "snip_model"),
        "compression_products": next(
            (s["bound s"] for s in stages if s["station"] == "snip_features"), None
        ),
        "peak_anon_gib": max(s["RssAnon"] for s in samples),
        "peak_resident_gib": max(s["VmHWM"] for s in samples),
        "planted_recall": near,
        "audited": {name: share_of(left["checks"].get(name)) for name in AUDITS},
    }


def share_of(check: dict[str, Any] | None) -> dict[str, Any] | None:
    """What an asset check says of a share, without its plots."""
    return check and {k: v for k, v in check.items() if k in SHARE}


def _growth(name: str, before: dict[str, Any] | None, own: dict[str, Any], rows: float) -> Any:
    """Power of the rows that the cost per row grew with, for so many times the rows."""
    if before is None or not before[name] or not own[name]:
        return None
    return float(np.log(own[name] / before[name]) / np.log(rows) - 1)


def grown(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stations of the last size, with the growth since the size before."""
    *earlier, own = results
    before = {s["station"]: s for s in earlier[-1]["stations"]} if earlier else {}
    more = own["rows"] / earlier[-1]["rows"] if earlier else 0.0
    return [
        station | {GROWTH: _growth("seconds", before.get(station["station"]), station, more)}
        for station in own["stations"]
    ]


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a size, with the growth since the size before."""
    rows: list[dict[str, Any]] = []
    for before, own in zip([None, *results], results, strict=False):
        more = own["rows"] / before["rows"] if before else 0.0
        products = own["compression_products"]
        recall = own["planted_recall"]
        audited = own["audited"]["query_recall"] or {}
        rows.append(
            {
                "rows": own["rows"],
                "seconds, training apart": own["without_training"],
                "all": own["seconds"],
                "times the compression's products": own["without_training"] / products
                if products
                else None,
                "anon GiB": own["peak_anon_gib"],
                "resident GiB": own["peak_resident_gib"],
                "planted recall": _share(recall["estimate"], recall["low"], recall["high"]),
                "audited recall": _share(
                    *(audited.get(k, 0) for k in ("estimate", "interval_low", "interval_high"))
                ),
                GROWTH: _growth("without_training", before, own, more),
            }
        )
    return rows


def _share(estimate: float, low: float, high: float) -> str:
    return f"{estimate:.4f} ({low:.4f} to {high:.4f})"


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(steps=options.steps, hidden=options.hidden, device=options.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--shards", type=int, default=0, help="0: of 100,000 rows each.")
    parser.add_argument("--steps", type=int, default=0, help="Of the net's training.")
    parser.add_argument("--hidden", type=int, default=Settings.hidden, help="Width of the net.")
    parser.add_argument("--device", default=Settings.device, help="auto, cpu or cuda.")
    parser.add_argument("--folder", type=Path, help="Where to work; default: a temporary one.")
    parser.add_argument("--keep", action="store_true", help="Keep the generated features.")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.out, _settings(options))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = []
        for rows in options.rows or [300_000]:
            results.append(measure(options, rows, folder))
            results[-1]["stations"] = grown(results)
            table(f"{rows:,} x {options.dim}", results[-1]["stations"])
            table("Whole pipeline", summary(results))
            facts = {"machine": cores(), "dim": options.dim, "hidden": options.hidden}
            name = "scale" if options.hidden == Settings.hidden else f"scale_{options.hidden}"
            if (device := device_of(_settings(options))).type == "cuda":
                facts["machine"]["gpu"] = torch.cuda.get_device_name(device)
                name += "_cuda"
            write(name, {**facts, "sizes": results, "summary": summary(results)})


if __name__ == "__main__":
    main()
