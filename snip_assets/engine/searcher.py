"""Nearest rows through any index: ours, a FAISS file, or a folder of FAISS files by shards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import faiss
import numpy as np
import torch

from . import shards
from .errors import BadInputError
from .features import normalised
from .holdings import Holdings
from .index import SnipIndex
from .layout import Layout
from .model import SnipNet, load_model

MOST_PROBES = 64
# Rows in the lists that are searched, about, for each that is asked for.
ROWS_A_HIT = 4
# What is in memory of a search: 12 bytes for each of these rows and 2 k, times the queries.
QUERIES_AT_ONCE, ROWS_AT_ONCE = 128, 1 << 15
Rerank = Literal["none", "snip", "raw"]


class Index(Protocol):
    """What is searched. Hits that are none have row id -1 and distance infinity."""

    dim: int
    rows: int

    def set_probes(self, probes: int) -> None:
        """Search this many inverted lists; 0 chooses, by what is asked for."""

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared L2 distances float32[n, k] and row ids int64[n, k], nearest first."""


class FaissIndex:
    """A FAISS index, memory-mapped where its type allows.

    Parameters
    ----------
    path
        As `faiss.write_index` wrote it.
    start
        Row id of its first row, for an index of a part whose ids restart at 0.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.start = path, start
        self.index = _read(path)
        self.dim, self.rows = int(self.index.d), int(self.index.ntotal)
        self.probes = 0

    def set_probes(self, probes: int) -> None:
        """Search this many inverted lists, when there are any."""
        self.probes = probes

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`; inner products of unit rows become distances."""
        if not self.rows:
            return _nothing(len(x), k)
        ivf = faiss.try_extract_index_ivf(self.index)
        if ivf is not None:
            ivf.nprobe = _probes(self.probes, ivf.nlist, self.rows, k)
        values, ids = self.index.search(np.ascontiguousarray(x, np.float32), k)
        # Where there are fewer than k, the value is the lowest of float32.
        values, ids = np.where(ids >= 0, values, -np.inf), np.where(ids >= 0, ids + self.start, -1)
        if self.index.metric_type == faiss.METRIC_INNER_PRODUCT:
            values = 2 - 2 * values
        return np.where(ids >= 0, values, np.inf).astype(np.float32), ids


def _read(path: Path) -> faiss.Index:
    if not path.is_file():
        raise BadInputError(f"{path}: no such file.")
    for flags in (faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY, 0):
        try:
            return faiss.read_index(str(path), flags)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
    raise BadInputError(f"{path}: not a readable FAISS index ({reason}); fetch it again.")


class FaissFolder:
    """FAISS files by shards, each with ids that restart at 0 (`0000_0001.index`).

    The first number in a name is the first shard that the file holds; the rows must end where a
    shard ends.
    """

    def __init__(self, folder: Path, offsets: np.ndarray) -> None:
        self.parts = []
        for path in sorted(folder.glob("*.index")):
            number = re.search(r"\d+", path.stem)
            if number is None or int(number[0]) >= len(offsets) - 1:
                raise BadInputError(f"{path}: its name must begin with the number of a shard.")
            part = FaissIndex(path, int(offsets[int(number[0])]))
            if part.start + part.rows not in offsets:
                raise BadInputError(
                    f"{path}: {part.rows} rows from row {part.start} on do not end where a shard "
                    "ends; these offsets belong to another data set."
                )
            self.parts.append(part)
        spans = sorted((p.start, p.start + p.rows) for p in self.parts)
        if not spans or any(a[1] > b[0] for a, b in pairwise(spans)):
            raise BadInputError(f"{folder}: no .index file, or two that hold the same rows.")
        self.dim, self.rows = self.parts[0].dim, sum(p.rows for p in self.parts)

    def set_probes(self, probes: int) -> None:
        """See `Index`."""
        for part in self.parts:
            part.set_probes(probes)

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`."""
        found = [part.search(x, k) for part in self.parts]
        distance = np.concatenate([d for d, _ in found], axis=1)
        return best(distance, np.concatenate([i for _, i in found], axis=1), k)


class OwnIndex:
    """Our index, list by list from its memory-mapped files; nothing is converted."""

    def __init__(self, layout: Layout) -> None:
        self.index = SnipIndex.open(layout)
        self.trained = self.index.trained
        self.dim, self.rows = self.trained.dim, self.index.rows
        self.probes = 0

    def set_probes(self, probes: int) -> None:
        """See `Index`."""
        self.probes = probes

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`."""
        x = np.asarray(x, np.float32)
        blocks = [x[s : s + QUERIES_AT_ONCE] for s in range(0, len(x), QUERIES_AT_ONCE)]
        found = [self._nearest(block, k) for block in blocks] or [_nothing(0, k)]
        distances, ids = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(ids)

    def _nearest(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        probes = _probes(self.probes, self.trained.lists, self.rows, k)
        probed, _ = self.trained.assigner.nearest(x, probes)
        hits = [_Hits(k) for _ in x]
        for number in np.unique(probed):
            rows, codes = self.index.read_list(int(number))
            asking = np.flatnonzero((probed == number).any(axis=1))
            for low in range(0, len(rows), ROWS_AT_ONCE):
                part = slice(low, low + ROWS_AT_ONCE)
                decoded = self.trained.codec.decode(codes[part]) + self.trained.centroids[number]
                found = (decoded**2).sum(1) - 2 * x[asking] @ decoded.T
                found += (x[asking] ** 2).sum(1, keepdims=True)
                ids = rows[part].astype(np.int64)
                for query, distances in zip(asking, np.maximum(found, 0), strict=True):
                    hits[query].add(distances, ids)
        distances, ids = zip(*(own.best() for own in hits), strict=True)
        return np.stack(distances), np.stack(ids)


class _Hits:
    """The nearest rows of one query; all that are met are held until they are many."""

    def __init__(self, k: int) -> None:
        self.k = k
        none = _nothing(1, k)
        self.parts, self.held = [(none[0][0], none[1][0])], k

    def add(self, distances: np.ndarray, ids: np.ndarray) -> None:
        self.parts.append((distances, ids))
        self.held += len(ids)
        if self.held > 2 * self.k + ROWS_AT_ONCE:
            self.parts, self.held = [self.best()], self.k

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest, ties by row id; -1 beyond the last one."""
        distances, ids = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        order = np.lexsort((ids, distances))[: self.k]
        return distances[order], ids[order]


def _probes(wanted: int, lists: int, rows: int, k: int) -> int:
    """How many of the lists are searched: as many as are wanted, or as k rows ask for."""
    enough = -(-ROWS_A_HIT * k * lists // max(1, rows))
    return min(lists, wanted or max(1, min(MOST_PROBES, lists // 10), enough))


def best(distances: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row, ties by row id; hits of unknown distance before no hits."""
    known = np.where(np.isnan(distances), np.finfo(np.float32).max, distances)
    order = np.lexsort((ids, known), axis=1)[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)


def _nothing(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int64)


@dataclass
class Searcher:
    """An index, the net that made its features, and the files that its row ids mean.

    Attributes
    ----------
    snip
        SNIP features of all shards, for re-ranking; None if there are none.
    """

    index: Index
    holdings: Holdings
    net: SnipNet | None = None
    snip: shards.Features | None = None

    def encode(self, raw: np.ndarray, encoded: bool = False) -> np.ndarray:
        """Features as the index holds them: float32[n, dim].

        Parameters
        ----------
        raw
            float[n, D]: raw features, or already of the index's dimension.
        encoded
            Whether they are SNIP features, though raw ones be as long.

        Raises
        ------
        BadInputError
            They fit neither the net nor the index.
        """
        size = raw.shape[1]
        if self.net is not None and size == self.net.sizes[0] and not encoded:
            if self.net.sizes[-1] != self.index.dim:
                raise BadInputError(
                    f"the net makes {self.net.sizes[-1]} numbers, the index holds "
                    f"{self.index.dim}: they do not belong together."
                )
            # The net's own normalisation leaves rows shorter than 1e-12 too short.
            with torch.no_grad():
                return self.net(torch.from_numpy(normalised(raw))).numpy()
        if size == self.index.dim:
            return normalised(raw)
        takes = f"{self.index.dim}" + (f" or {self.net.sizes[0]}" if self.net else "")
        raise BadInputError(
            f"the query has {size} numbers, but {takes} are needed; give the net that shortens "
            "features to those of the index (--model), or features of the right model."
        )

    def search(
        self,
        raw: np.ndarray,
        k: int,
        rerank: Rerank = "none",
        depth: int = 100,
        encoded: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query.

        Parameters
        ----------
        raw
            float[n, D].
        rerank
            Sort the first `depth` hits again by SNIP or raw distance; hits whose features are not
            at hand come last, at distance NaN.
        encoded
            As in `encode`.

        Returns
        -------
        Squared L2 distances float32[n, k] and row ids int64[n, k]; -1 and infinity for no hit.
        """
        if encoded and rerank == "raw":
            raise BadInputError("the query's raw features are not at hand; re-rank without them.")
        x = self.encode(raw, encoded)
        if rerank == "none":
            return self.index.search(x, k)
        _, ids = self.index.search(x, max(k, min(depth, self.index.rows)))
        queries = normalised(raw) if rerank == "raw" else x
        distances = np.stack([self._exact(q, i, rerank) for q, i in zip(queries, ids, strict=True)])
        return best(distances, ids, k)

    def _exact(self, query: np.ndarray, ids: np.ndarray, rerank: Rerank) -> np.ndarray:
        out = np.where(ids >= 0, np.nan, np.inf).astype(np.float32)
        if rerank == "raw":
            have, found = self.holdings.raw(ids)
        elif self.snip is None:
            raise BadInputError("there are no SNIP features to re-rank with; use --rerank raw.")
        else:
            have = ids >= 0
            found = normalised(self.snip.take(ids[have])) if have.any() else np.empty((0, 0))
        if have.any():
            if found.shape[1] != len(query):
                raise BadInputError(
                    f"the query has {len(query)} numbers, the {rerank} features {found.shape[1]}; "
                    "re-rank with the others, or give a query of that model."
                )
            out[have] = ((found - query) ** 2).sum(1)
        return out


def open_searcher(
    out: Path | None = None,
    index: Path | None = None,
    features: Path | None = None,
    metadata: Path | None = None,
    offsets: Path | None = None,
    model: Path | None = None,
    probes: int = 0,
) -> Searcher:
    """Open what a user names: an output folder of ours, a FAISS index, folders, a net.

    Raises
    ------
    BadInputError
        Something is missing or does not belong together.
    """
    layout = Layout(out) if out is not None else None
    registry = shards.load(layout) if layout is not None and layout.registry.exists() else None
    named = metadata or features
    if named and index is None and offsets is None and layout is not None and registry is not None:
        # The run's index has the rows in the order of its shards, which numbers do not tell.
        offsets = layout.row_offsets
    if metadata or features or offsets:
        holdings = Holdings.of_folders(metadata, features, offsets)
        if index is None and registry is not None:
            _require_rows_of(registry, holdings, offsets)
    elif registry is not None:
        holdings = Holdings.of_registry(registry)
    else:
        where = f"{layout}: no shards are registered there; " if layout else ""
        raise BadInputError(
            f"{where}name the data: --out of a run, or --metadata, --features, --offsets."
        )
    opened = _open_index(index, layout, holdings)
    opened.set_probes(probes)
    if opened.rows > holdings.rows:
        raise BadInputError(
            f"the index has {opened.rows} rows, the data set {holdings.rows}: they do not belong "
            "together (`snip dedup` makes the index of an output folder anew)."
        )
    if model is None and layout is not None and layout.snip_model.is_dir():
        model = layout.snip_model
    snip = None
    if (
        layout is not None
        and registry is not None
        and layout.root.joinpath("snip_features").is_dir()
    ):
        snip = shards.snip_features(layout, registry)
    return Searcher(opened, holdings, load_model(model) if model is not None else None, snip)


def _require_rows_of(registry: shards.Registry, holdings: Holdings, offsets: Path | None) -> None:
    if not np.array_equal(holdings.offsets, registry.offsets):
        raise BadInputError(
            f"{offsets}: not the row offsets of the run, whose index is searched; leave --offsets "
            "out, or name another --index."
        )


def _open_index(index: Path | None, layout: Layout | None, holdings: Holdings) -> Index:
    if index is None:
        if layout is None:
            raise BadInputError("name an index: --index FILE, or --out of a run of ours.")
        return OwnIndex(layout)
    if index.is_dir():
        return FaissFolder(index, holdings.offsets)
    return FaissIndex(index)
