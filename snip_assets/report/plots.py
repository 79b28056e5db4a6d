"""Small pictures for Dagster's metadata: matplotlib to PNG to a line of markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from snip_assets.engine.storage.parquet_source import parquet_file

BLUE = "#4f43dd"
MOST_BINS = 60
# Characters that fit below a picture; numbers at an axis, and dates at the most.
WIDE, NUMBERS, DATES = 56, 5, 3
_INLINE = "data:image/png;base64,"
Curve = Sequence[tuple[float, float]] | Mapping[str, float]


def of_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """All pictures that the facts of an output hold, by name.

    Loss and recall of a training, recall of a calibration over its slack, lengths of inverted
    lists, distances of pairs.
    """
    shown: dict[str, str] = {}
    points = facts.get("curve") or [{}]
    if "loss" in points[0]:
        for name in ("loss", "recall", "precision"):
            line = [(p["step"], p[name]) for p in points]
            shown[f"{name}_curve"] = curve(line, f"{name} in training", "step", name)
    if "slack" in points[0]:
        line = [(p["slack"], p["recall"]) for p in points]
        shown["recall_curve"] = curve(line, "recall of true pairs", "slack", "recall")
    if sizes := facts.get("list_sizes"):
        shown["list_sizes"] = histogram(sizes, "inverted lists", "rows in the list", "lists")
    if counts := facts.get("distances"):
        most = facts.get("max_distance", 1.0)
        edges = [f"{most * i / len(counts):.3f}" for i in range(len(counts))]
        binned = dict(zip(edges, counts, strict=True))
        shown["distances"] = bars(binned, "distances of pairs", "raw distance", "pairs")
    return shown


def group_sizes(groups: Path) -> str:
    """Histogram of the sizes of groups, in steps of two, from `groups.parquet`."""
    counts = np.zeros(64, np.int64)
    with parquet_file(groups) as file:
        for batch in file.iter_batches(columns=["size"]):
            sizes = batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)
            counts += np.bincount(np.log2(sizes).astype(int), minlength=64)
    top = int(np.flatnonzero(counts).max(initial=0)) + 1
    binned = {f"{2**i}+": int(counts[i]) for i in range(1, top)}
    return bars(binned, "sizes of groups", "rows in the group", "groups", log_y=True)


def curve(points: Curve, title: str, x: str, y: str) -> str:
    """A line through (x, y) points, such as a loss or a recall curve.

    Returns
    -------
    A markdown image with the PNG inside, about 10 kB.
    """
    figure, axes = _figure(title, x, y)
    pairs = points.items() if isinstance(points, Mapping) else points
    values = np.array([(float(a), float(b)) for a, b in pairs]).reshape(-1, 2)
    axes.plot(values[:, 0], values[:, 1], color=BLUE, marker="." if len(values) <= 50 else "")
    return _markdown(figure, title)


def histogram(values: Sequence[int], title: str, x: str, y: str) -> str:
    """How often each size occurs among `values`, such as the lengths of inverted lists."""
    figure, axes = _figure(title, x, y)
    array = np.asarray(values)
    if len(array):
        # One patch: a bar each takes twice as long to draw.
        found = np.histogram(array, min(MOST_BINS, int(np.ptp(array)) + 1))
        axes.stairs(*found, fill=True, color=BLUE)
    return _markdown(figure, title)


def bars(counts: Mapping[str, int], title: str, x: str, y: str, *, log_y: bool = False) -> str:
    """One bar for each entry of a ready-made histogram {value: count}, in the order given."""
    figure, axes = _figure(title, x, y)
    if counts:
        floor = 0.5 if log_y else 0.0
        heights = np.full(2 * len(counts) - 1, floor)
        heights[::2] = np.maximum(list(counts.values()), floor)
        edges = np.add.outer(np.arange(len(counts)), [-0.4, 0.4]).ravel()
        if log_y:
            # Powers of ten in print are formulas, which take their time.
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.minorticks_off()
        axes.stairs(heights, edges, baseline=floor, fill=True, color=BLUE)
    names = [str(k) for k in counts]
    # As many names as there is room for.
    room = max(map(len, names), default=0) + 3
    step = max(1, -(-len(names) * room // WIDE))
    axes.set_xticks(range(0, len(names), step), names[::step])
    return _markdown(figure, title)


def trend(points: Sequence[tuple[float, float, float, float]], title: str) -> str:
    """An estimate with its interval over time: (Unix time, estimate, low, high), oldest first."""
    figure, axes = _figure(title.replace("_", " "), "", "estimate and 95% interval")
    values = np.array(points, float).reshape(-1, 4)
    error = np.abs(values[:, 1:2] - values[:, 2:]).T
    axes.errorbar(values[:, 0], values[:, 1], error, color=BLUE, marker=".", capsize=2, linewidth=1)
    first, last = values[:, 0].min(initial=np.inf), values[:, 0].max(initial=-np.inf)
    shown = np.unique(np.linspace(first, last, DATES)) if len(values) else values[:, 0]
    dates = np.datetime_as_string(shown.astype("datetime64[s]"), "m")
    axes.set_xticks(shown, [date.replace("T", " ") for date in dates])
    # Room for what stands below the first and the last.
    axes.margins(x=0.15)
    return _markdown(figure, title)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.8))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Margins that a layout finds by drawing everything once more take as long as the picture.
    figure.subplots_adjust(left=0.17, right=0.97, bottom=0.19, top=0.89)
    # Where a title is to stand is found, unless it is told, by laying out all that is below it.
    axes.set_title(title, y=1.02)
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    # Each number at an axis takes a millisecond or two, and a mark beside its line as much again.
    axes.locator_params(nbins=NUMBERS)
    axes.tick_params(length=0, left=False, bottom=False)
    return figure, axes


def _markdown(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    # No date or version inside: equal data gives equal bytes.
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"![{title}]({_INLINE}{encoded})"


def is_picture(text: Any) -> bool:
    """Whether a value is one of the pictures made here."""
    return isinstance(text, str) and text.startswith("![") and f"]({_INLINE}" in text[:200]
