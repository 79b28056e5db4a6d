"""The queries of inverted lists: rows that probe them, as the kernels of the join read them.

Few rows of a shard that arrives alone probe a list. So the queries of some lists are prepared
together, and only what is left is done list by list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .axes import Axes
from .kernels.byte_products import Short
from .kernels.whole_rows import STEPS, whole_rows

# Squared steps of a squared distance of 1.
UNIT = STEPS**2


def in_steps(distance: np.ndarray) -> np.ndarray:
    """Squared distances in squared steps: int64."""
    return np.rint(distance.astype(np.float64) * UNIT).astype(np.int64)


def slack_steps(slack: float) -> int:
    """A slack in squared steps, rounded down."""
    return int(np.floor(slack * UNIT))


@dataclass(frozen=True)
class CandidateRule:
    """When a pair is a candidate, and how to find it quickly.

    Attributes
    ----------
    slack
        Largest ADC(i, j) - ADC(i, i).
    short_slack
        The same on the leading axes alone.
    axes
        The leading axes.
    """

    slack: float
    short_slack: float
    axes: Axes

    @cached_property
    def short_steps(self) -> float:
        """`short_slack` in squared steps of the axes."""
        return self.axes.steps(self.short_slack)


@dataclass
class ListProbes:
    """The number of a list, and row ids and errors of the rows that probe it.

    Attributes
    ----------
    ids
        uint64[q], ascending.
    error
        float32[q, 2], their ADC(i, i): squared steps on the leading axes, and as a whole.
    """

    number: int
    ids: np.ndarray
    error: np.ndarray


class ListQueries(NamedTuple):
    """The vectors of these rows, as the kernels read them.

    Attributes
    ----------
    short
        On the leading axes, as seen from the list's centroid.
    bound
        float32[q], least product of `short` with a row.
    whole
        What `whole_rows` gives.
    error
        int64[q], ADC(i, i) in squared steps.
    """

    short: Short
    bound: np.ndarray
    whole: np.ndarray
    error: np.ndarray


def list_queries(
    rule: CandidateRule,
    origins: np.ndarray,
    probes: list[ListProbes],
    x: np.ndarray,
    places: list[np.ndarray],
) -> Iterator[ListQueries]:
    """The queries of each of some lists; made together, as each has few.

    Parameters
    ----------
    origins
        float32[lists, filled width], the projected centroids.
    x
        float32[n, dim], SNIP features of the rows that probe any of these lists.
    places
        Of each list, where its rows are in `x`.
    """
    whole = whole_rows(x)
    projected = rule.axes.project_whole(whole, len(x))
    sizes = [len(one.ids) for one in probes]
    origin = np.repeat(origins[[one.number for one in probes]], sizes, axis=0)
    short = rule.axes.coordinates(projected[np.concatenate(places)] - origin)
    error = np.concatenate([one.error for one in probes])
    bound = -short.half - np.float32(0.5) * (error[:, 0] + np.float32(rule.short_steps))
    steps = in_steps(error[:, 1])
    end = 0
    for size, place in zip(sizes, places, strict=True):
        own = slice(end, end := end + size)
        some = Short(short.steps[own], short.half[own], short.width)
        yield ListQueries(some, bound[own], whole[place], steps[own])
