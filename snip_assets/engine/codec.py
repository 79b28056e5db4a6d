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
import torch
from numba import njit

from .errors import BadInputError

BLOCK = 512
WORDS = 256
CODECS = ("PQ4", "PQ8", "PQ16", "PQ32", "SQ8", "SQfp16")


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
def _smallest(score, codes):
    """Column of the smallest score of each row and sub-quantiser, the first of equals."""
    for m in range(score.shape[0]):
        for i in range(score.shape[1]):
            row = score[m, i]
            lowest = row[0]
            for c in range(WORDS):
                lowest = min(lowest, row[c])
            for c in range(WORDS):
                if row[c] == lowest:
                    codes[i, m] = c
                    break


@njit(nogil=True, cache=True)
def _pq_decode(codes, book, out):
    """Sum of codewords; `book` is M x 256 x width, each row as wide as the result."""
    width = book.shape[2]
    for i in range(codes.shape[0]):
        for d in range(width):
            out[i, d] = book[0, codes[i, 0], d]
        for m in range(1, codes.shape[1]):
            code = codes[i, m]
            for d in range(width):
                out[i, d] += book[m, code, d]


@njit(nogil=True, cache=True)
def _pq_concat(codes, book, out):
    """Concatenation of codewords; `book` is M x 256 x dsub."""
    dsub = book.shape[2]
    for i in range(codes.shape[0]):
        for m in range(codes.shape[1]):
            code = codes[i, m]
            for d in range(dsub):
                out[i, m * dsub + d] = book[m, code, d]


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
            words = torch.from_numpy(self.book)
            self._table = words.transpose(1, 2).contiguous()
            self._norms = 0.5 * (words.double() ** 2).sum(2).float()[:, None]

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
        codes = np.empty((len(residuals), self.size), np.uint8)
        for start in range(0, len(residuals), BLOCK):
            part = torch.from_numpy(residuals[start : start + BLOCK])
            parts = part.unflatten(1, (self.size, -1)).transpose(0, 1)
            score = torch.baddbmm(self._norms, parts, self._table, alpha=-1)
            _smallest(score.numpy(), codes[start : start + BLOCK])
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Residuals of codes: float32[n, dim]."""
        codes = np.ascontiguousarray(codes)
        if self.book is None:
            return self.index.sq.decode(codes)
        out = np.empty((len(codes), self.dim), np.float32)
        _pq_concat(codes, self.book, out)
        return out

    def projector(self, axes: np.ndarray) -> Projector:
        """Decoder straight onto a few orthonormal axes (dim x width)."""
        return Projector(self, np.ascontiguousarray(axes, np.float32))


class Projector:
    """Decodes codes onto fewer axes: for a product quantiser, a sum of projected codewords."""

    def __init__(self, codec: Codec, axes: np.ndarray) -> None:
        self.codec, self.axes = codec, axes
        self.width = axes.shape[1]
        self._book: np.ndarray | None = None
        if codec.book is not None:
            m_count, _, dsub = codec.book.shape
            parts = axes.reshape(m_count, dsub, self.width)
            self._book = np.ascontiguousarray(np.einsum("mkd,mdw->mkw", codec.book, parts))

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """float32[n, width]."""
        if self._book is None:
            return self.codec.decode(codes) @ self.axes
        out = np.empty((len(codes), self.width), np.float32)
        _pq_decode(np.ascontiguousarray(codes), self._book, out)
        return out


def empty_index(codec: str, quantizer: faiss.Index, lists: int) -> faiss.IndexIVF:
    """An untrained FAISS IVF index over residuals.

    Raises
    ------
    BadInputError
        The codec is unknown, or does not divide the dimension.
    """
    dim = quantizer.d
    if codec not in CODECS:
        raise BadInputError(f"codec {codec!r} is unknown; choose one of {', '.join(CODECS)}.")
    if codec.startswith("PQ"):
        parts = int(codec[2:])
        if dim % parts:
            raise BadInputError(f"{codec} does not divide {dim} numbers; choose another codec.")
        index = faiss.IndexIVFPQ(quantizer, dim, lists, parts, 8)
        index.pq.cp.seed = 1234
        index.pq.cp.min_points_per_centroid = 1
        return index
    kind = {
        "SQ8": faiss.ScalarQuantizer.QT_8bit,
        "SQfp16": faiss.ScalarQuantizer.QT_fp16,
    }[codec]
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, kind, faiss.METRIC_L2, True)
