"""Charts as plain geometry: templates draw them as SVG that follows the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 48
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Numbers to places along an axis of `length` pixels that begins at `start`."""

    low: float
    high: float
    start: float
    length: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a number, in pixels, two decimals."""
        low, high, value = (self._warp(v) for v in (self.low, self.high, value))
        return round(self.start + self.length * (value - low) / (high - low or 1.0), 2)

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels of round numbers."""
        values = self._powers() if self.log else self._steps()
        return [(self.at(v), label(v)) for v in values]

    def _powers(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1,) if self.high > 200 * self.low else (1, 2, 5)
        values = [m * 10.0**p for p in range(first, last + 1) for m in steps]
        return [v for v in values if self.low <= v * 1.0001 and v <= self.high * 1.0001]

    def _steps(self) -> list[float]:
        span = (self.high - self.low) or 1.0
        unit = 10.0 ** math.floor(math.log10(span / 4))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if span / (m * unit) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A short number: 0.05, 1.5k, 20k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


@dataclass
class Series:
    """A line, dots or bars, as geometry.

    Attributes
    ----------
    name
        In the legend; empty: none.
    path
        Points of a line, `x,y x,y`.
    dots
        Places.
    bars
        x, y, width, height.
    whiskers
        x, y of the upper, y of the lower end of an interval.
    """

    name: str = ""
    path: str = ""
    dots: list[Point] = field(default_factory=list)
    bars: list[tuple[float, float, float, float]] = field(default_factory=list)
    whiskers: list[tuple[float, float, float]] = field(default_factory=list)


@dataclass
class Chart:
    """One chart and the table behind it."""

    key: str
    title: str
    x_label: str
    y_label: str
    note: str
    x: Scale
    y: Scale
    series: list[Series]
    columns: list[str]
    rows: list[list[Any]]


def _frame(
    points: Sequence[Point], log_x: bool, log_y: bool, y_low: float | None, y_high: float | None
) -> tuple[Scale, Scale]:
    xs, ys = [p[0] for p in points] or [1.0, 2.0], [p[1] for p in points] or [1.0, 2.0]
    low = (min(ys) if log_y else min(0.0, *ys)) if y_low is None else y_low
    high = max(ys) if y_high is None else y_high
    left, right = min(xs), max(xs)
    if left == right:
        left, right = (left / 2, right * 2) if log_x else (left - 0.5, right + 0.5)
    if low == high:
        low, high = (low / 2, high * 2) if log_y else (low, low + 1)
    if log_x:
        left, right = left / 1.15, right * 1.15
    if log_y:
        low, high = low / 1.3, high * 1.3
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return (
        Scale(left, right, LEFT, across, log_x),
        Scale(low, high, TOP + down, -down, log_y),
    )


def lines(
    key: str,
    title: str,
    labels: tuple[str, str],
    named: Mapping[str, Sequence[Point]],
    note: str = "",
    *,
    log: tuple[bool, bool] = (False, False),
    y_range: tuple[float | None, float | None] = (None, None),
    dots: bool = False,
) -> Chart:
    """Lines (or dots alone) through (x, y) points, one for each name."""
    everything = [(float(a), float(b)) for points in named.values() for a, b in points]
    x, y = _frame(everything, *log, *y_range)
    series, rows = [], []
    for name, points in named.items():
        places = [(x.at(float(a)), y.at(float(b))) for a, b in points]
        path = "" if dots else " ".join(f"{a},{b}" for a, b in places)
        shown = places if dots or len(places) <= 40 else []
        series.append(Series(name if len(named) > 1 else "", path, shown))
        rows += [[*([name] if len(named) > 1 else []), a, b] for a, b in points]
    columns = [*(["series"] if len(named) > 1 else []), *labels]
    return Chart(key, title, *labels, note, x, y, series, columns, rows)


def histogram(
    key: str,
    title: str,
    labels: tuple[str, str],
    edges: Sequence[float],
    counts: Sequence[int],
    note: str = "",
) -> Chart:
    """Bars of counts between edges."""
    corners = [(edges[0], 0.0), (edges[-1], float(max(counts, default=1) or 1))]
    x, y = _frame(corners, False, False, 0.0, None)
    bars = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, top = x.at(low), y.at(count)
        width, height = max(0.5, x.at(high) - left - 0.6), y.at(0) - top
        bars.append((left, top, round(width, 2), round(height, 2)))
    rows = [[f"{a:.4g} to {b:.4g}", n] for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    return Chart(key, title, *labels, note, x, y, [Series(bars=bars)], list(labels), rows)


def shares(
    key: str,
    title: str,
    labels: tuple[str, str],
    points: Sequence[tuple[float, float, float, float, int]],
    note: str = "",
) -> Chart:
    """Shares with their intervals: (x, share, low, high, of how many)."""
    x, y = _frame([(p[0], p[1]) for p in points], False, False, 0.0, 1.0)
    places = [(x.at(a), y.at(b)) for a, b, *_ in points]
    whiskers = [(x.at(a), y.at(high), y.at(low)) for a, _, low, high, _ in points]
    rows: list[list[Any]] = [[f"{a:.4g}", b, low, high, n] for a, b, low, high, n in points]
    columns = [*labels, "95% from", "to", "of"]
    series = [Series(dots=places, whiskers=whiskers)]
    return Chart(key, title, *labels, note, x, y, series, columns, rows)


@dataclass
class Matrix:
    """Counts between shards as shaded squares.

    Attributes
    ----------
    keys
        Names of the rows and columns.
    cells
        x, y, size, shade (0 to 1), count, for each square that is not empty.
    """

    keys: list[str]
    cells: list[tuple[float, float, float, float, int]]
    size: float
    rows: list[list[Any]]


def matrix(keys: list[str], counts: Sequence[Sequence[int]]) -> Matrix:
    """Shaded by the square root of the count, so that small counts are seen beside large ones."""
    size = round(360 / max(1, len(keys)), 2)
    most = max((n for row in counts for n in row), default=0) or 1
    cells = [
        (round(c * size, 2), round(r * size, 2), size, round(0.08 + 0.92 * (n / most) ** 0.5, 3), n)
        for r, row in enumerate(counts)
        for c, n in enumerate(row)
        if n
    ]
    table = [[key, *row] for key, row in zip(keys, counts, strict=True)]
    return Matrix(keys, cells, size, table)
