"""Which inverted lists a row belongs to and probes.

A row's home is the list of its nearest centroid. It also probes a neighbouring list when it lies
near the border: with home a and another list b, the distance of a row to the plane between the
two centroids is (d_b^2 - d_a^2) / (2 |c_a - c_b|), and no row of b is nearer to it than that. So
list b is probed when this *margin* is at most a radius that calibration reads from true pairs.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .kernels.list_scores import DOUBT, LOWEST, Scorer
from .kernels.registers import LANES, above, lane_maxima, lowest_bit, squared_distance
from .kernels.vectors import WIDTH
from .kernels.whole_rows import write_products

BLOCK = 2048


@njit(nogil=True, cache=True)
def _smallest(values, count):
    """The last of the `count` smallest of some float32, and the next one, infinite if none is left.

    By halves of the range that it is in: to count what is below is several times as fast as to
    sort. No value is NaN.
    """
    keys = np.empty(values.shape[0], np.int32)
    bits = values.view(np.int32)
    for k in range(values.shape[0]):
        # Whole numbers in the same order.
        keys[k] = bits[k] ^ ((bits[k] >> 31) & np.int32(0x7FFFFFFF))
    low, high = np.int64(keys.min()), np.int64(keys.max())
    while low < high:
        middle = (low + high) >> 1
        key, below = np.int32(middle), 0
        for k in range(keys.shape[0]):
            below += keys[k] <= key
        if below >= count:
            high = middle
        else:
            low = middle + 1
    last, beyond, held = np.float32(0.0), np.float32(np.inf), 0
    for k in range(keys.shape[0]):
        if keys[k] == low:
            last = values[k]
        elif keys[k] > low:
            beyond = min(beyond, values[k])
        held += keys[k] <= low
    return last, last if held > count else beyond


@njit(nogil=True, cache=True)
def _floor(score, i, count, tops, value):
    """A number that at least `count` scores of a row exceed, not far below the last of them.

    There is one for `LANES` at the most.
    """
    lane_maxima(score, i * score.shape[1], score.shape[1], tops)
    value[:] = LOWEST
    for lane in range(LANES):
        s = tops[lane]
        p = count - 1
        if s <= value[p]:
            continue
        while p > 0 and value[p - 1] < s:
            value[p] = value[p - 1]
            p -= 1
        value[p] = s
    return np.nextafter(value[count - 1], LOWEST)


@njit(nogil=True, cache=True)
def _last_of_best(score, i, tops, value):
    """The least of the largest scores of a row, as many as there is room for in `value`.

    Columns are filled up with `LOWEST` to a multiple of `LANES`.
    """
    columns, count = score.shape[1], len(value)
    if count > LANES:
        return -_smallest(-score[i], count)[0]
    floor = _floor(score, i, count, tops, value)
    value[:] = floor
    for base in range(0, columns, LANES):
        mask = above(score, i * columns + base, floor)
        while mask != 0:
            s = score[i, base + lowest_bit(mask)]
            mask &= mask - np.uint32(1)
            if s <= floor:
                continue
            p = count - 1
            while p > 0 and value[p - 1] < s:
                value[p] = value[p - 1]
                p -= 1
            value[p] = s
            floor = value[count - 1]
    return floor


@njit(nogil=True, cache=True, fastmath={"nsz", "reassoc", "contract"})
def _exact_apart(a, i, b, j):
    """Squared distance of two rows: float32 squares, summed in float64; the same on each thread."""
    total = 0.0
    for d in range(a.shape[1]):
        difference = a[i, d] - b[j, d]
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def _margins(centroids, lists, distance, margin):
    """Distance of each row to the plane between its home and each other list of its shortlist."""
    for i in range(lists.shape[0]):
        margin[i, 0] = 0.0
        for p in range(1, lists.shape[1]):
            between = _exact_apart(centroids, lists[i, 0], centroids, lists[i, p])
            gap = distance[i, p] - distance[i, 0]
            margin[i, p] = gap / (2.0 * np.sqrt(between)) if between > 0.0 else 0.0


@njit(nogil=True, cache=True)
def _apart(a, i, b, j):
    """Squared distance of two rows, within `DOUBT` of the exact one."""
    total = squared_distance(a, i, b, j)
    for d in range(a.shape[1] // WIDTH * WIDTH, a.shape[1]):
        difference = a[i, d] - b[j, d]
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def _shortlist(score, i, floor, words, bases, found):
    """Numbers of the scores of a row that exceed the floor, ascending; how many there are."""
    columns, filled, count = score.shape[1], 0, 0
    for base in range(0, columns, LANES):
        mask = above(score, i * columns + base, floor)
        # Without a branch: few words are not 0, and the processor cannot guess which.
        words[filled], bases[filled] = mask, base
        filled += mask != 0
    for k in range(filled):
        mask = words[k]
        while mask != 0:
            found[count] = bases[k] + lowest_bit(mask)
            mask &= mask - np.uint32(1)
            count += 1
    return count


@njit(nogil=True, cache=True)
def _nearest_of(found, apart, lists, distance):
    """Nearest lists among some, ascending; how many. Of equals the first is ahead."""
    most, count = lists.shape[0], 0
    if most > LANES:
        # Insertion would move half of them for each.
        order = np.argsort(apart, kind="mergesort")[:most]
        for k in order:
            distance[count], lists[count] = apart[k], found[k]
            count += 1
        return count
    for k in range(found.shape[0]):
        value = apart[k]
        if count == most and value >= distance[most - 1]:
            continue
        count = min(count + 1, most)
        p = count - 1
        while p > 0 and distance[p - 1] > value:
            distance[p], lists[p] = distance[p - 1], lists[p - 1]
            p -= 1
        distance[p], lists[p] = value, found[k]
    return count


@njit(nogil=True, cache=True)
def _clear(x, i, centroids, near, radius, apart, lists):
    """How many lists a row probes, home first; 0 where rounding may have a say."""
    home, second = 0, np.float32(np.inf)
    # In a loop of its own: no centroid waits for another then.
    for k in range(near.shape[0]):
        apart[k] = _apart(x, i, centroids, near[k])
    for k in range(1, near.shape[0]):
        if apart[k] < apart[home]:
            home, second = k, apart[home]
        else:
            second = min(second, apart[k])
    last, least = np.float32(np.inf), second - apart[home]
    if near.shape[0] > lists.shape[0]:
        last, beyond = _smallest(apart[: near.shape[0]], lists.shape[0])
        least = min(least, beyond - last)
    if least < DOUBT:
        return 0
    lists[0], kept = near[home], 1
    for k in range(near.shape[0]):
        if k == home or apart[k] > last:
            continue
        between = _apart(centroids, near[home], centroids, near[k])
        over = apart[k] - apart[home] - radius * 2.0 * np.sqrt(between)
        if abs(over) < DOUBT:
            return 0
        if over < 0.0:
            lists[kept] = near[k]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _decided(x, i, centroids, near, radius, lists):
    """As `_clear`, from exact distances as `nearest` and `margins` have them."""
    apart, distance = np.empty(near.shape[0]), np.empty((1, lists.shape[0]))
    for k in range(near.shape[0]):
        apart[k] = _exact_apart(x, i, centroids, near[k])
    count = _nearest_of(near, apart, lists, distance[0])
    margin, kept = np.empty((1, count)), 1
    _margins(centroids, lists[:count].reshape((1, count)), distance, margin)
    for p in range(1, count):
        if margin[0, p] <= radius:
            lists[kept] = lists[p]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _tighter(score, i, error, reach, norm, x, row, centroids, near):
    """Leave out what is too far by its score: the best one's distance is computed; how many stay.

    Scores are off by up to an error either way; a distance is not.
    """
    best = near[0]
    for k in range(1, near.shape[0]):
        if score[i, near[k]] > score[i, best]:
            best = near[k]
    apart = _apart(x, row, centroids, best) + DOUBT
    floor, count = np.float32(0.5 * (norm - apart) - reach - error), 0
    for k in range(near.shape[0]):
        if score[i, near[k]] >= floor:
            near[count] = near[k]
            count += 1
    return count


@njit(nogil=True, cache=True)
def _nearest(rows, x, centroids, lists, distance):
    """The nearest lists of each row, nearest first, by exact distances."""
    panels, whole, scale, bias, _, error, part = rows
    columns = len(scale)
    tops, value = np.empty(LANES, np.float32), np.empty(lists.shape[1], np.float32)
    words, bases = np.empty((2, columns // LANES + 1), np.uint32)
    found, apart = np.empty(columns, np.int32), np.empty(columns)
    score = np.empty((part, columns), np.float32)
    for i in range(x.shape[0]):
        own = i % part
        if own == 0:
            write_products(panels, whole[i : i + part], scale, bias, score)
        last = _last_of_best(score, own, tops, value)
        floor = np.float32(last - np.float32(2.0) * error[i])
        near = found[: _shortlist(score, own, floor, words, bases, found)]
        for k in range(near.shape[0]):
            apart[k] = _exact_apart(x, i, centroids, near[k])
        _nearest_of(near, apart[: near.shape[0]], lists[i], distance[i])


@njit(nogil=True, cache=True)
def _probed(rows, x, centroids, reach, radius, lists, probes):
    """The lists that each row probes, home first, and how many they are."""
    panels, whole, scale, bias, norm, error, part = rows
    columns = len(scale)
    tops = np.empty(LANES, np.float32)
    words, bases = np.empty((2, columns // LANES + 1), np.uint32)
    found, apart = np.empty(columns, np.int32), np.empty(columns, np.float32)
    score = np.empty((part, columns), np.float32)
    for i in range(x.shape[0]):
        own = i % part
        if own == 0:
            write_products(panels, whole[i : i + part], scale, bias, score)
        lane_maxima(score, own * columns, columns, tops)
        floor = np.float32(tops.max() - reach - np.float32(2.0) * error[i])
        near = found[: _shortlist(score, own, floor, words, bases, found)]
        count = _tighter(score, own, error[i], reach, norm[i], x, i, centroids, near)
        probes[i] = _clear(x, i, centroids, near[:count], radius, apart, lists[i])
        if probes[i] == 0:
            probes[i] = _decided(x, i, centroids, near[:count], radius, lists[i])


class Assigner:
    """Nearest centroids of rows.

    By a blocked matrix product in small whole numbers, which leaves the lists that may be meant;
    between these exact distances decide, whatever products the processor has.

    Parameters
    ----------
    centroids
        float32[lists, dim], means of rows of unit length.
    """

    def __init__(self, centroids: np.ndarray) -> None:
        self.centroids = np.ascontiguousarray(centroids, np.float32)
        self._scorer = Scorer(self.centroids)

    def nearest(self, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest lists of each row, nearest first, and squared distances to them.

        Parameters
        ----------
        x
            float32[n, dim], of about unit length; blocks of at most a few thousand rows.

        Returns
        -------
        lists : int32[n, count]
        distances : float64[n, count]
        """
        count = min(count, len(self.centroids))
        lists, distance = np.empty((len(x), count), np.int32), np.empty((len(x), count))
        _nearest(self._scorer(x), x, self.centroids, lists, distance)
        return lists, distance

    def probed(
        self, x: np.ndarray, count: int, radius: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lists within a margin of each row, at most `count`, the nearest.

        Parameters
        ----------
        x
            As for `nearest`.

        Returns
        -------
        home : int32[n]
        row, lists : [m]
            A probe each: position in `x`, ascending, and the list: home first, others in any order.
        """
        count = min(count, len(self.centroids))
        # What lies within the margin is no more than so much less alike.
        reach = np.float32(radius * self._scorer.widest + DOUBT)
        found, probes = np.empty((len(x), count), np.int32), np.empty(len(x), np.int64)
        _probed(self._scorer(x), x, self.centroids, reach, radius, found, probes)
        row, rank = np.nonzero(np.arange(count) < probes[:, None])
        return found[:, 0], row, found[row, rank]

    def margins(self, lists: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """float64[n, count]: margin of each row to each list of its shortlist (0 for its home)."""
        margin = np.empty(lists.shape, np.float64)
        _margins(
            self.centroids, np.ascontiguousarray(lists), np.ascontiguousarray(distance), margin
        )
        return margin
