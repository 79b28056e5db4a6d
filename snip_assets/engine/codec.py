"""Codecs: what the index stores of a residual, by FAISS's names.

Product quantisers (`PQ4` … `PQ32`, 8 bits each) are trained by FAISS and encoded and decoded here,
because encoding row by row through FAISS costs more than the join. Scalar quantisers (`SQ8`,
`SQfp16`) go through FAISS.

Source: Jegou et al., "Product quantization for nearest neighbor search", TPAMI 2011.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numba import njit

from .errors import BadInputError
from .kernels.aligned import aligned
from .kernels.registers import nearest_word

BLOCK = 256
CODECS = ("PQ4", "PQ8", "PQ16", "PQ32", "SQ8", "SQfp16")


@njit(nogil=True, cache=True)
def _pq_encode(residuals, table, norms, codes):
    """Nearest word of each part, the first of equals; `table` is M x dsub x 256."""
    parts, dsub, _ = table.shape
    for start in range(0, residuals.shape[0], BLOCK):
        for m in range(parts):
            for i in range(start, min(start + BLOCK, residuals.shape[0])):
                codes[i, m] = nearest_word(residuals, i, m * dsub, table, m, norms)


@njit(nogil=True, cache=True)
def _pq_concat(codes, book, origin, out):
    """Concatenation of codewords, added to an origin; `book` is M x 256 x dsub."""
    dsub = book.shape[2]
    for i in range(codes.shape[0]):
        for m in range(codes.shape[1]):
            code = codes[i, m]
            for d in range(dsub):
                out[i, m * dsub + d] = origin[m * dsub + d] + book[m, code, d]


class Words:
    """The words of a product quantiser of 8 bits.

    Parameters
    ----------
    book
        float32[parts, 256, dim / parts].
    """

    def __init__(self, book: np.ndarray) -> None:
        self.book = book
        self._table = aligned(book.transpose(0, 2, 1))
        norms = (book.astype(np.float64) ** 2).sum(2)
        self._norms = aligned((0.5 * norms).astype(np.float32))

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Nearest words, the first of equals: uint8[n, parts] of float32[n, dim] in C order."""
        codes = np.empty((len(rows), len(self.book)), np.uint8)
        _pq_encode(rows, self._table, self._norms, codes)
        return codes

    def decode(self, codes: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Rows that words make, each added to an origin: float32[n, dim]."""
        out = np.empty((len(codes), self.book.shape[0] * self.book.shape[2]), np.float32)
        _pq_concat(codes, self.book, origin, out)
        return out


class Codec:
    """A trained codec over residuals.

    Parameters
    ----------
    index
        A trained FAISS `IndexIVFPQ` (8 bits) or `IndexIVFScalarQuantizer`.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self.size = int(index.code_size)
        self.dim = int(index.d)
        self.book: np.ndarray | None = None
        if isinstance(index, faiss.IndexIVFPQ):
            pq = index.pq
            book = faiss.vector_to_array(pq.centroids)
            self.book = book.reshape(pq.M, pq.ksub, pq.dsub).astype(np.float32)
            self._words = Words(self.book)

    def encode(self, residuals: np.ndarray) -> np.ndarray:
        """Codes of residuals.

        Parameters
        ----------
        residuals
            float32[n, dim].

        Returns
        -------
        uint8[n, code size]
        """
        residuals = np.ascontiguousarray(residuals, np.float32)
        if self.book is None:
            return self.index.sq.compute_codes(residuals)
        return self._words.encode(residuals)

    def decode(self, codes: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
        """Residuals of codes, or vectors when an origin is given: float32[n, dim].

        Parameters
        ----------
        origin
            float32[dim], a centroid that residuals are added to.
        """
        codes = np.ascontiguousarray(codes)
        origin = np.zeros(self.dim, np.float32) if origin is None else origin
        if self.book is None:
            return self.index.sq.decode(codes) + origin
        return self._words.decode(codes, origin)


def require_fits(codec: str, dim: int) -> None:
    """Raise BadInputError if a codec is unknown or does not divide a dimension."""
    if codec not in CODECS:
        raise BadInputError(f"codec {codec!r} is unknown; choose one of {', '.join(CODECS)}.")
    if codec.startswith("PQ") and dim % int(codec[2:]):
        raise BadInputError(
            f"{codec} does not divide {dim} numbers; choose another codec (--codec), or another "
            "dimension of the SNIP features (--dim)."
        )


def empty_index(codec: str, quantizer: faiss.Index, lists: int) -> faiss.IndexIVF:
    """An untrained FAISS IVF index over residuals.

    Raises
    ------
    BadInputError
        The codec is unknown, or does not divide the dimension.
    """
    dim = quantizer.d
    require_fits(codec, dim)
    if codec.startswith("PQ"):
        index = faiss.IndexIVFPQ(quantizer, dim, lists, int(codec[2:]), 8)
        index.pq.cp.seed = 1234
        index.pq.cp.min_points_per_centroid = 1
        return index
    kind = {
        "SQ8": faiss.ScalarQuantizer.QT_8bit,
        "SQfp16": faiss.ScalarQuantizer.QT_fp16,
    }[codec]
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, kind, faiss.METRIC_L2, True)
