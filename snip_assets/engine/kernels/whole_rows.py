"""Rows in whole numbers of 16 bits: their products and distances are exact in any order."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from . import tiles
from .aligned import aligned
from .aligned import room as aligned_room
from .registers import AT_ONCE, LANES
from .scaled_products import scaled_products

if TYPE_CHECKING:
    from snip_assets.engine.codec import Codec

# Steps a unit of length, and how far a number may be from 0: a unit row and any other differ by
# less than 2^15 steps then. Squared distances of 0.1 are off by 3e-4 of themselves.
STEPS = 8192.0
LARGEST = 24_575.0
# Rows are filled up with zeros to a multiple of so many numbers: of a tile, where there are any.
FILL = tiles.BYTES if tiles.LENT else 32


@njit(nogil=True, cache=True)
def _whole(x, steps, largest, out):
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[i, d] = np.int16(min(max(np.rint(x[i, d] * steps), -largest), largest))


@njit(nogil=True, cache=True)
def _whole_words(book, origin, steps, largest, out):
    """The same of words of each part, added to an origin."""
    size = book.shape[2]
    for m in range(book.shape[0]):
        for word in range(book.shape[1]):
            for d in range(size):
                x = origin[m * size + d] + book[m, word, d]
                out[m, word, d] = np.int16(min(max(np.rint(x * steps), -largest), largest))


def whole_rows(x: np.ndarray, steps: float = STEPS, largest: float = LARGEST) -> np.ndarray:
    """Rows rounded to steps, as the kernels read them.

    Parameters
    ----------
    x
        float32[n, dim].
    steps
        Steps a unit of length.
    largest
        Numbers beyond it are cut, in steps; at most 32,767.

    Returns
    -------
    int16[n', dim']
        Filled up with zeros: to a multiple of `AT_ONCE` rows and of `FILL` numbers.
    """
    out = room(len(x), x.shape[1])
    _whole(x, np.float32(steps), np.float32(largest), out)
    return out


class Decoded(NamedTuple):
    """What `whole_rows` makes of decoded codes, each row decoded when it is first looked at.

    Attributes
    ----------
    rows
        int16[n', dim'].
    known
        bool[n]: which are decoded.
    codes
        uint8[n, code size].
    words, bits
        Codewords [M, 256, size], and the rows [n', dim'], both as unsigned numbers as wide as a
        word allows; none where all rows are known.
    """

    rows: np.ndarray
    known: np.ndarray
    codes: np.ndarray
    words: np.ndarray
    bits: np.ndarray

    @classmethod
    def all(cls, rows: np.ndarray) -> Decoded:
        """Of rows that are known."""
        codes, words = np.empty((0, 0), np.uint8), np.empty((0, 0, 0), np.uint64)
        return cls(rows, np.ones(len(rows), np.bool_), codes, words, words.reshape(0, 0))

    @classmethod
    def of(cls, codec: Codec, codes: np.ndarray, origin: np.ndarray) -> Decoded:
        """Of codes.

        Parameters
        ----------
        codes
            uint8[n, code size].
        origin
            float32[dim], a centroid that residuals are added to.
        """
        if codec.book is None or len(codes) < codec.book.shape[1]:
            return cls.all(whole_rows(codec.decode(codes, origin)))
        # Numbers are rounded one by one: so the words of a list are, once, instead of all its rows.
        size = codec.book.shape[2]
        words = np.empty(codec.book.shape, np.int16)
        _whole_words(codec.book, origin, np.float32(STEPS), np.float32(LARGEST), words)
        known, rows = np.zeros(len(codes), np.bool_), room(len(codes), codec.dim)
        wide = f"u{gcd(8, words.itemsize * size)}"
        return cls(rows, known, codes, words.view(wide), rows.view(wide))


@njit(nogil=True, cache=True)
def decode(decoded, places, low, high):
    """Decode the rows of `Decoded` that are at the places from low to high, but for known ones."""
    _, known, codes, words, bits = decoded
    size = words.shape[2]
    for k in range(low, high):
        j = places[k]
        if known[j]:
            continue
        known[j] = True
        for m in range(codes.shape[1]):
            word = codes[j, m]
            for d in range(size):
                bits[j, m * size + d] = words[m, word, d]


def room(rows: int, dim: int) -> np.ndarray:
    """Room for whole rows: int16, filled up with zeros beyond these rows and numbers."""
    out = np.empty((-(-rows // AT_ONCE) * AT_ONCE, -(-dim // FILL) * FILL), np.int16)
    out[rows:] = 0
    out[:, dim:] = 0
    return out


@njit(nogil=True, cache=True)
def write_products(panels, rows, scale, bias, out):
    """What `products` returns, into the first rows of an array."""
    for panel in range(panels.shape[0]):
        scaled_products(panels, panel, rows, scale, bias, out)


def products(
    panels: np.ndarray, rows: np.ndarray, scale: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """scale * (rows x panels) + bias: float32[n', p * LANES].

    Parameters
    ----------
    panels
        What `column_panels` gives.
    rows
        What `whole_rows` gives.
    scale, bias
        float32[p * LANES], of each column.
    """
    out = np.empty((len(rows), len(scale)), np.float32)
    write_products(panels, _tiled(rows) if panels.ndim == 6 else rows, scale, bias, out)
    return out


def _tiled(rows: np.ndarray) -> np.ndarray:
    """Rows in tiles of the lower halves of their numbers, and of the upper ones.

    Parameters
    ----------
    rows
        What `whole_rows` gives.

    Returns
    -------
    uint8[n / 16, 2, width / 64, 16, 64]
    """
    blocks, width = len(rows) // tiles.ROWS, rows.shape[1] // tiles.BYTES
    out = aligned_room((blocks, 2, width, tiles.ROWS, tiles.BYTES), np.uint8)
    _split(rows, out)
    return out


@njit(nogil=True, cache=True)
def _split(rows, out):
    size = out.shape[4]
    for i in range(rows.shape[0]):
        block, own = i // out.shape[3], i % out.shape[3]
        for tile in range(out.shape[2]):
            some = rows[i, tile * size : (tile + 1) * size]
            for d in range(size):
                out[block, 0, tile, own, d] = some[d] & 255
            for d in range(size):
                out[block, 1, tile, own, d] = some[d] >> 8


def column_panels(columns: np.ndarray, kind: np.typing.DTypeLike = np.int16) -> np.ndarray:
    """Whole columns as `scaled_products` reads them, filled up with zeros.

    Parameters
    ----------
    columns
        [count, dim], whole numbers that the type holds.
    kind
        int16 or, with VNNI, int8.
    """
    count, dim = columns.shape
    together = 4 // np.dtype(kind).itemsize
    wide, width = -(-count // LANES), -(-dim // FILL) * FILL
    padded = np.zeros((wide * LANES, width), kind)
    padded[:count, :dim] = columns
    if tiles.LENT and together == 2:
        halves = np.stack([padded & 255, padded >> 8]).astype(np.uint8)
        tiled = halves.reshape(2, wide, 2, tiles.ROWS, -1, tiles.ROWS, 4)
        return aligned(
            tiled.transpose(1, 2, 0, 4, 5, 3, 6).reshape(wide, 2, 2, -1, tiles.ROWS, tiles.BYTES)
        )
    return aligned(padded.reshape(wide, LANES, -1, together).transpose(0, 2, 1, 3))
