"""Small pictures for Dagster's metadata: matplotlib to PNG to a line of markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE = "#4f43dd"
MOST_BINS = 60
Curve = Sequence[tuple[float, float]] | Mapping[str, float]


def curve(points: Curve, title: str, x: str, y: str, *, log_x: bool = False) -> str:
    """A line through (x, y) points, such as a loss or a recall curve.

    Returns
    -------
    A markdown image with the PNG inside, about 10 kB.
    """
    figure, axes = _figure(title, x, y)
    pairs = points.items() if isinstance(points, Mapping) else points
    values = np.array([(float(a), float(b)) for a, b in pairs]).reshape(-1, 2)
    axes.plot(values[:, 0], values[:, 1], color=BLUE, marker="." if len(values) <= 50 else "")
    if log_x:
        axes.set_xscale("log")
    return _markdown(figure, title)


def histogram(values: Sequence[int], title: str, x: str, y: str, *, log_y: bool = False) -> str:
    """How often each size occurs among `values`, such as the lengths of inverted lists."""
    figure, axes = _figure(title, x, y)
    array = np.asarray(values)
    if len(array):
        axes.hist(array, bins=min(MOST_BINS, int(np.ptp(array)) + 1), color=BLUE)
    if log_y:
        axes.set_yscale("log")
    return _markdown(figure, title)


def bars(counts: Mapping[str, int], title: str, x: str, y: str, *, log_y: bool = False) -> str:
    """One bar for each entry of a ready-made histogram {value: count}, in the order given."""
    figure, axes = _figure(title, x, y)
    axes.bar(range(len(counts)), list(counts.values()), color=BLUE)
    step = max(1, len(counts) // 12)
    axes.set_xticks(range(0, len(counts), step), [str(k) for k in counts][::step])
    if log_y and counts:
        axes.set_yscale("log")
    return _markdown(figure, title)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _markdown(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    # No date or version inside: equal data gives equal bytes.
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"![{title}](data:image/png;base64,{encoded})"
