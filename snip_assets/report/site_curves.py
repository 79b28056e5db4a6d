"""What the pages of numbers show: the summary and the curves."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from snip_assets.engine.audit import Interval
from snip_assets.engine.layout import STATIONS
from snip_assets.engine.run import Run
from snip_assets.engine.storage.files import Manifest, digest_of, read_manifest
from snip_assets.engine.wording import counted

from . import marks, site_charts, site_data
from .site_charts import Chart
from .site_pages import number, percent, size

_REVIEWED = {
    "random": "right of random pairs (reviewed by people)",
    "inside": "right just inside the threshold (reviewed)",
    "outside": "the same picture just outside the threshold (reviewed)",
}


def summary_values(
    run: Run,
    values: dict[str, Any],
    quality: dict[str, Interval],
    reviewed: dict[str, Interval],
) -> dict[str, Any]:
    """Of the page `index.html`."""
    names = {
        "precision": "precision: pairs within the threshold in the raw features",
        "recall": "recall: of the duplicates that exact search finds",
    }
    trusted = [(names[k], v) for k, v in quality.items()]
    trusted += [(_REVIEWED[k], v) for k, v in reviewed.items()]
    columns, stations = _stations(run)
    return {
        "rows": values["rows"],
        "dropped": values["dropped"],
        "shards": len(run.registry.shards),
        "not_compared": values["shards_not_compared"],
        "max_distance": run.settings.max_distance,
        "tiles": _tiles(run, values),
        "quality": trusted,
        "reviewed": bool(reviewed),
        "station_columns": columns,
        "stations": stations,
        "settings": [[k, None if v == "" else v] for k, v in run.settings.__dict__.items()],
        "chosen": _chosen(run),
        "made_otherwise": site_data.made_otherwise(run),
        "versions": list(site_data.versions().items()),
        "digests": _digests(run),
    }


def _tiles(run: Run, values: dict[str, Any]) -> list[tuple[str, str, str]]:
    groups = read_manifest(run.layout.duplicate_groups)
    facts = groups.facts if groups else {}
    near = values["dropped"] - values["exact_copies"]
    largest = counted(facts.get("largest_group", 0), "row")
    return [
        ("rows", number(values["rows"]), counted(len(run.registry.shards), "shard")),
        ("kept", number(values["kept"]), percent(values["kept"] / (values["rows"] or 1))),
        ("dropped: exact copies", number(values["exact_copies"]), "equal byte for byte"),
        ("dropped: near copies", number(near), ""),
        ("pairs", number(values["pairs"]), ""),
        (
            "groups",
            number(values["groups"]),
            f"largest: {largest}",
        ),
        ("groups that keep several", number(facts.get("chained_groups")), "chains"),
        ("index", f"{values['index_bytes_per_row'] or 0:.1f}", "bytes a row"),
    ]


def _stations(run: Run) -> tuple[list[str], list[list[Any]]]:
    columns = ["station", "seconds", "memory at most", "rows a second", "size", "outputs"]
    rows = [
        [
            s["station"],
            f"{s['seconds']:,.1f}" if s["seconds"] >= 10 else f"{s['seconds']:.2f}",
            size(s["memory"]),
            None if s["rate"] is None else int(s["rate"]),
            size(s["bytes"]),
            s["outputs"],
        ]
        for s in site_data.stations(run)
    ]
    return columns, rows


def _chosen(run: Run) -> list[list[Any]]:
    """What the stations chose themselves, where a setting leaves it to them."""
    model, index = (read_manifest(p) for p in (run.layout.snip_model, run.layout.trained_index))
    net = {"net": "method", "net, why": "why", "training steps": "steps"}
    lists = {
        **{"inverted lists": "lists", "probes at most": "probes", "slack": "slack"},
        "recall in calibration": "recall",
    }
    found = [(model.facts if model else {}, net), (index.facts if index else {}, lists)]
    return [
        [name, facts[fact]]
        for facts, names in found
        for name, fact in names.items()
        if fact in facts
    ]


def _digests(run: Run) -> list[list[str]]:
    """Of each station's outputs; of `clip_features`, which tells whether the data is the same."""
    found = ((name, site_data.manifests(run, name)) for name in STATIONS)
    return [[name, _digest(made)] for name, made in found if made]


def _digest(made: list[Manifest]) -> str:
    return made[0].version if len(made) == 1 else digest_of([m.version for m in made])


def curves_values(run: Run, marked: pa.Table) -> dict[str, Any]:
    """Of the page `curves.html`."""
    cuts, share = site_data.thresholds(run)
    threshold = _threshold(cuts, share)
    for cut in cuts:
        cut["x"], cut["y"] = threshold.x.at(cut["max_distance"]), threshold.y.at(cut["dropped"])
        cut["share"] = cut["dropped"] / (run.registry.rows or 1)
    keys, counts = site_data.shard_matrix(run)
    hosts, looked_at = site_data.domains(run)
    charts = [_sizes(run), _distances(run), *_training(run), *_calibration(run), _reviewed(marked)]
    return {
        "rows": run.registry.rows,
        "cuts": cuts,
        "threshold": threshold,
        "charts": [c for c in charts if c is not None],
        "matrix": site_charts.matrix(keys, counts.tolist()),
        "within": float(counts.trace() / (counts.sum() or 1)),
        "grouped": len(keys) < len(run.registry.shards),
        "domains": hosts,
        "looked_at": looked_at,
    }


def _threshold(cuts: list[dict[str, Any]], share: float) -> Chart:
    note = (
        "At 0: exact copies and rows at no distance. snip recut makes the outputs of a smaller "
        "threshold without a new search."
    )
    if share < 1:
        note += f" Estimated from random groups, {percent(share)} of all; the last one is exact."
    return site_charts.lines(
        "thresholds",
        "What a smaller threshold would drop",
        ("threshold on the raw distance", "rows dropped"),
        {"": [(c["max_distance"], c["dropped"]) for c in cuts]},
        note,
    )


def _sizes(run: Run) -> Chart:
    return site_charts.lines(
        "sizes",
        "Sizes of groups",
        ("rows in the group", "groups"),
        {"": site_data.group_sizes(run)},
        "Both axes logarithmic.",
        log=(True, True),
        dots=True,
    )


def _distances(run: Run) -> Chart:
    edges, counts = site_data.pair_distances(run)
    labels_ = ("raw distance", "pairs")
    note = "Exact copies, all at distance 0, are left out."
    return site_charts.histogram("distances", "Distances of pairs", labels_, edges, counts, note)


_CODES_JOIN = "The step up is where the index's codes join the loss: their term is never near 0."


def _training(run: Run) -> list[Chart | None]:
    manifest = read_manifest(run.layout.snip_model)
    points = (manifest.facts.get("curve") if manifest else None) or []
    charts: list[Chart | None] = []
    note = _CODES_JOIN if any(p.get("code_precision") for p in points) else ""
    shown = (("loss", "Loss in training", note), ("recall", "Recall and precision in training", ""))
    for name, title, note in shown:
        names = (name, "precision") if name == "recall" else (name,)
        lines = {n: [(p["step"], p[n]) for p in points if n in p] for n in names}
        if any(lines.values()):
            labels_ = ("step", name if len(names) == 1 else "share")
            charts.append(site_charts.lines(f"training-{name}", title, labels_, lines, note))
    return charts


def _calibration(run: Run) -> list[Chart | None]:
    manifest = read_manifest(run.layout.trained_index)
    facts = manifest.facts if manifest else {}
    charts: list[Chart | None] = []
    if (points := facts.get("curve")) and "sampled_pairs" in facts:
        charts.append(
            site_charts.lines(
                "slack",
                "Calibration: recall over slack",
                ("slack", "recall"),
                {"": [(p["slack"], p["recall"]) for p in points]},
                f"Chosen: slack {facts['slack']:.4g}, at most {facts['probes']} probes; recall "
                f"{facts['recall']:.4f} on {facts['sampled_pairs']:,} pairs of a sample"
                + (", and rows moved to stand in for more." if facts["stand_ins"] else "."),
                y_range=(min(0.95, int(20 * min(p["recall"] for p in points)) / 20), 1.0),
            )
        )
    lines = {}
    for tier, name in (("snip", "SNIP features alone"), ("codes", "index alone")):
        curve = (facts.get("tiers") or {}).get(tier, {}).get("curve") or []
        # Rounding may give distances a little below 0: the last of them stands for all.
        lines[name] = list({max(0.0, p["max_distance"]): p["precision"] for p in curve}.items())
    if any(lines.values()):
        charts.append(
            site_charts.lines(
                "precision",
                "Precision against distance",
                ("threshold on the coarser distance", "precision"),
                {name: points for name, points in lines.items() if points},
                "Of a verified sample: the share of pairs up to a distance of SNIP features or "
                "of codes that are duplicates in the raw features.",
                y_range=(0.0, 1.0),
            )
        )
    return charts


def _reviewed(marked: pa.Table) -> Chart | None:
    points = marks.by_distance(marked)
    if not points:
        return None
    return site_charts.shares(
        "reviewed",
        "What people marked right, by distance",
        ("raw distance", "share right"),
        points,
        f"{len(marked):,} marked pairs; the bars are 95% intervals.",
    )
