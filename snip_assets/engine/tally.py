"""How often each row is in an index: each must be there once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from .storage.resident import trim
from .threads import count, ordered_map

BLOCK_ROWS = 1 << 20
# Bits for all rows that are in memory at once, twice.
MOST_AT_ONCE = 2


def tally(parts: Sequence[tuple[np.ndarray, int]], rows: int) -> tuple[np.ndarray, list[int]]:
    """Count rows. Memory: a quarter of a byte a row and thread, two at the most, and the result.

    Parameters
    ----------
    parts
        Of each, its rows (whole numbers, in any order), and the row id of its row 0.
    rows
        Rows of the data set.

    Returns
    -------
    times
        uint8[rows]: how often each row occurs, 2 for twice or more.
    beyond
        Positions of the parts with rows that the data set does not have.
    """
    # Bits lie in the cache where bytes do not; a list has rows from everywhere.
    marks = [np.zeros((2, -(-rows // 8)), np.uint8) for _ in range(min(count(), MOST_AT_ONCE))]

    def work(number: int) -> set[int]:
        beyond = set()
        for position, (own, start) in enumerate(parts):
            for first in range(number * BLOCK_ROWS, len(own), len(marks) * BLOCK_ROWS):
                if mark_again(own[first : first + BLOCK_ROWS], start, rows, *marks[number]):
                    beyond.add(position)
                trim()
        return beyond

    found = list(ordered_map(work, range(len(marks)), len(marks)))
    once, again = marks[0]
    for other_once, other_again in marks[1:]:
        again |= other_again | once & other_once
        once |= other_once
    times = np.unpackbits(once, count=rows, bitorder="little")
    if again.any():
        times += np.unpackbits(again, count=rows, bitorder="little")
    return times, sorted(set().union(*found))


@njit(nogil=True, cache=True)
def mark_again(own, start, rows, once, again):
    """Mark rows by bits, those that were marked before as well; how many are beyond the last.

    Parameters
    ----------
    own
        Whole numbers [n].
    start
        Row id of number 0.
    rows
        Rows that there are.
    once, again
        uint8[rows / 8 or more], a bit a row, the lowest first: those that occur, those that occur
        twice or more.
    """
    beyond = 0
    for row in own:
        place = np.int64(row) + start
        if 0 <= place < rows:
            bit, known = np.uint8(1 << (place & 7)), once[place >> 3]
            # A store at each row would take four times as long.
            if known & bit:
                again[place >> 3] |= bit
            else:
                once[place >> 3] = known | bit
        else:
            beyond += 1
    return beyond
