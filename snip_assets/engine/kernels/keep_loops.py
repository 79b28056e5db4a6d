"""The inner loops of the keep rule; every array is by place or by rank, as in `keep`."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def count_members(first, sizes):
    """Count the rows of each class at its first copy."""
    for row in range(len(first)):
        sizes[first[row]] += 1


@numba.njit(nogil=True, cache=True)
def count(row, earlier_row, distance, most, first, sizes, neighbours):
    """Add the rows at the other end of each pair to a class's neighbours."""
    for i in range(len(row)):
        if distance[i] <= most:
            a, b = first[row[i]], first[earlier_row[i]]
            if a != b:
                neighbours[a] += sizes[b]
                neighbours[b] += sizes[a]


@numba.njit(nogil=True, cache=True)
def count_classes(first, paired):
    """Count the classes that occur in pairs."""
    count = 0
    for row in range(len(first)):
        count += paired[row] and first[row] == row
    return count


@numba.njit(nogil=True, cache=True)
def number(rows, first, rank, survivor, done, none):
    """Give each class its rank when its best member is visited; return the next rank."""
    for i in range(len(rows)):
        row = rows[i]
        root = first[row]
        if rank[root] == none:
            rank[root] = done
            survivor[done] = row
            done += 1
    return done


@numba.njit(nogil=True, cache=True)
def share(first, paired, rank):
    """Give the rank of a class to all its members."""
    for row in range(len(first)):
        if paired[row]:
            rank[row] = rank[first[row]]


@numba.njit(nogil=True, cache=True)
def ends(row, earlier_row, distance, most, rank):
    """Ranks of the later and the earlier visited end of each pair between two classes."""
    later = np.empty(len(row), np.uint64)
    earlier = np.empty(len(row), np.uint64)
    count = 0
    for i in range(len(row)):
        if distance[i] <= most:
            a, b = rank[row[i]], rank[earlier_row[i]]
            if a != b:
                later[count] = max(a, b)
                earlier[count] = min(a, b)
                count += 1
    return later[:count], earlier[:count]


@numba.njit(nogil=True, cache=True)
def sweep(later, earlier, dropped):
    """Drop the later-visited end of each pair whose earlier one is kept."""
    for i in range(len(later)):
        if not dropped[earlier[i]]:
            dropped[later[i]] = True


@numba.njit(nogil=True, cache=True)
def improve(row, earlier_row, distance, rank, dropped, survivor, nearest, best):
    """Point dropped classes to a nearer kept row, or a lower one as near."""
    for i in range(len(row)):
        a, b = rank[row[i]], rank[earlier_row[i]]
        if a == b or dropped[a] == dropped[b]:
            continue
        if dropped[b]:
            a, b = b, a
        far, kept = distance[i], survivor[b]
        if far < best[a] or (far == best[a] and kept < nearest[a]):
            best[a] = far
            nearest[a] = kept


@numba.njit(nogil=True, cache=True)
def explain(rank, dropped, survivor, nearest, distance, kept, far):
    """Write kept row and distance of some rows, all in pairs."""
    for i in range(len(rank)):
        r = rank[i]
        if dropped[r]:
            kept[i], far[i] = nearest[r], distance[r]
        else:
            kept[i], far[i] = survivor[r], 0.0
