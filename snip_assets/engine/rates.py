"""What this machine does in a second, measured in a few seconds with the engine's own kernels."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import xxhash

from . import choices, copies, threads
from .assign import BLOCK
from .axes import Axes
from .codec import empty_index
from .compress import BLOCK_ROWS, compress, device_of
from .encode import Encoder
from .features import Features
from .join import CPU, QUERY_BLOCK, buffers, scan, scanned_on
from .kernels.byte_products import TOP, Short, panels
from .kernels.byte_products import queries as as_queries
from .kernels.whole_rows import Decoded
from .model import SnipNet
from .settings import Settings
from .storage.remote_files import is_remote, open_file
from .trained import TrainedIndex
from .verify import distances

WIDTH = 32
ROW = 1536
FEW, MANY = 512, 4096
# Of a margin to another list, and of centroids less their mean: about as in ten million generated
# rows.
RADIUS, LENGTH = 0.03, 0.6
DISK_BYTES, PIECES = 1 << 26, 16
ROUNDS = 4


@dataclass(frozen=True)
class Rates:
    """Rates of one core while all cores work, and of the disk.

    Attributes
    ----------
    cores
        Cores that were measured.
    product
        float32 operations a second of a bare matrix product (a multiplication and an addition
        are two).
    compress
        The same of the compression as a whole: reading, normalising, products, activation.
    interpreted
        Rows of 1,536 bytes that the interpreter has the library hash one by one, in a second.
    hash_bytes
        Bytes of raw features checked and hashed a second.
    assign
        Distances to centroids a second, of `dim` numbers.
    encode
        Rows encoded a second, their assignment apart.
    join
        Pairs a second compared on 32 leading axes.
    verify
        Pairs of raw rows in memory verified a second.
    read, write
        Bytes a second of the disk, for all cores together.
    gpu, gpu_join
        What `compress` and `join` are on a GPU that all cores feed; 0 where torch sees none, or the
        settings keep to the processor.
    """

    cores: int
    product: float
    compress: float
    interpreted: float
    hash_bytes: float
    assign: float
    encode: float
    join: float
    verify: float
    read: float
    write: float
    gpu: float = 0.0
    gpu_join: float = 0.0


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def measure(folder: Path, dim: int, settings: Settings) -> Rates:
    """Measure this machine.

    Parameters
    ----------
    folder
        Where a file of 64 MB may be written for a moment: the disk that is measured.
    dim
        Numbers of a raw feature.
    """
    workers = threads.count(settings.workers)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=".snip-rates-") as place:
        write, read, hashed, verified = _of_files(Path(place), dim, random, workers)
    few, many = _encoding(settings, random, workers)
    per_list = max(many - few, 1e-12) / (MANY - FEW)
    here, device = replace(settings, device="cpu"), device_of(settings)
    on_gpu = (0.0, 0.0)
    if device.type != "cpu":
        products = _compressing(dim, settings, random, workers)
        on_gpu = workers * products, workers * _joining(workers, device)
    return Rates(
        cores=workers,
        product=product_rate(workers) / workers,
        compress=_compressing(dim, here, random, workers),
        interpreted=_interpreted(),
        hash_bytes=hashed / workers,
        assign=1 / per_list,
        encode=1 / max(few - FEW * per_list, few / 10),
        join=_joining(workers),
        verify=verified,
        read=read,
        write=write,
        gpu=on_gpu[0],
        gpu_join=on_gpu[1],
    )


def _timed(works: Sequence[Callable[[int], Any]], times: int, workers: int) -> list[float]:
    """Seconds that a call of each takes on one core while all cores work, after a first call.

    The least of some rounds, in turns: a machine that hesitates once, or a thread that waits for
    its first memory, decides nothing.
    """
    taken = np.full((ROUNDS, len(works)), np.inf)
    for work in works:
        work(0)
    for number in range(ROUNDS):
        for own, work in enumerate(works):
            started = time.perf_counter()
            for _ in threads.ordered_map(work, range(times * workers), workers):
                pass
            taken[number, own] = (time.perf_counter() - started) / times
    return taken.min(0).tolist()


def reading(files: Sequence[Path]) -> float:
    """Bytes a second of files where they lie: of their disk, or of memory if they are held there.

    Looks at 64 MB of them at the most. 0 where there is nothing to read.
    """
    places = np.linspace(0, len(files) - 1, PIECES).astype(int).tolist() if files else []
    done, started = 0, time.perf_counter()
    for number, place in enumerate(places):
        path = files[place]
        with closing(open_file(path)) if is_remote(path) else open(path, "rb", buffering=0) as file:
            # Not where a piece of the same file was read before.
            file.seek(int(path.stat().st_size * number / PIECES))
            done += len(file.read(DISK_BYTES // PIECES))
    return done / (time.perf_counter() - started) if done else 0.0


def product_rate(workers: int) -> float:
    """float32 operations a second of all cores, in products as the compression has them."""
    a, b = torch.randn(512, 768), torch.randn(768, 1024)

    def work(_: int) -> None:
        for _ in range(8):
            torch.mm(a, b)

    return workers * 8 * 2 * a.shape[0] * b.numel() / _timed([work], 3, workers)[0]


def _compressing(dim: int, settings: Settings, random: np.random.Generator, workers: int) -> float:
    sizes = (dim, *[settings.hidden] * settings.depth, settings.dim)
    net = SnipNet(sizes).eval()
    block = random.standard_normal((BLOCK_ROWS, dim), np.float32).astype(np.float16)
    (seconds,) = _timed([lambda _: compress(net, block, settings)], 3, workers)
    return 2 * BLOCK_ROWS * net_size(dim, settings) / seconds


def net_size(dim: int, settings: Settings) -> int:
    """Weights of the net: multiplications a row."""
    hidden, depth = settings.hidden, settings.depth
    return hidden * (dim + settings.dim) + hidden * hidden * max(0, depth - 1)


def _of_files(
    folder: Path, dim: int, random: np.random.Generator, workers: int
) -> tuple[float, float, float, float]:
    """Disk write and read, hashing in bytes a second, verified pairs a second and core."""
    rows = DISK_BYTES // (2 * dim)
    path = folder / "rows.npy"
    x = random.standard_normal((rows, dim), np.float32).astype(np.float16)
    # Of few numbers, a row could be all zeros.
    x[x == 0] = 1
    started = time.perf_counter()
    np.save(path, x)
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())
    write = x.nbytes / (time.perf_counter() - started)
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as cached:
            os.posix_fadvise(cached.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    with open(path, "rb") as source:
        while source.read(1 << 22):
            pass
    read = x.nbytes / (time.perf_counter() - started)
    hashing = []
    # The first time loads the kernels, and any may wait for a disk that has others to serve.
    for _ in range(3):
        started = time.perf_counter()
        copies.hash_shard(path, folder / "hashes.npy", workers)
        hashing.append(time.perf_counter() - started)
    hashed = x.nbytes / min(hashing)
    left, right = random.integers(0, rows, (2, 2048)).astype(np.uint64)

    def verify(_: int) -> None:
        distances(Features([path], np.array([0, rows])), left, right)

    return write, read, hashed, len(left) / _timed([verify], 8, workers)[0]


def _encoding(settings: Settings, random: np.random.Generator, workers: int) -> tuple[float, float]:
    """Seconds a row to assign and encode with few and with many lists, on one core."""
    x = random.standard_normal((BLOCK, settings.dim), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    axes = Axes(np.eye(settings.dim, WIDTH, dtype=np.float32), TOP)
    works = []
    for lists in (FEW, MANY):
        probes = settings.max_probes or choices.FEWEST_PROBES
        encoder = Encoder(_untrained(x, lists, settings, random), axes, RADIUS, probes)
        works.append(lambda _, encoder=encoder: encoder.block(x))
    few, many = _timed(works, 3, workers)
    return few / BLOCK, many / BLOCK


def _untrained(
    x: np.ndarray, lists: int, settings: Settings, random: np.random.Generator
) -> TrainedIndex:
    """An index with any centroids and words."""
    quantizer = faiss.IndexFlatL2(settings.dim)
    centroids = random.standard_normal((lists, settings.dim), np.float32)
    quantizer.add(LENGTH * centroids / np.linalg.norm(centroids, axis=1, keepdims=True))
    index: Any = empty_index(settings.codec, quantizer, lists)
    if settings.codec.startswith("PQ"):
        book = random.standard_normal(index.pq.ksub * settings.dim).astype(np.float32)
        faiss.copy_array_to_vector(0.05 * book, index.pq.centroids)
    else:
        index.sq.train(x)
    index.is_trained = True
    index.referenced_objects = [quantizer]
    return TrainedIndex.of(index)


def _interpreted() -> float:
    # Few enough to stay in the cache: the interpreter's pace is wanted, not the memory's.
    rows, times = memoryview(b"\1" * (ROW << 10)), 40
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            for start in range(0, len(rows), ROW):
                xxhash.xxh3_64_intdigest(rows[start : start + ROW])
        taken.append(time.perf_counter() - started)
    return times * len(rows) / ROW / min(taken)


def _joining(workers: int, device: torch.device = CPU) -> float:
    # On another device as long a list as there are: what is moved there and back counts too.
    queries, rows, times = (4 * QUERY_BLOCK, 1024, 64) if device == CPU else (4096, 8192, 4)
    none = [np.zeros(count, np.float32) for count in (rows, queries)]
    listed, short = (Short(np.zeros((len(n), WIDTH), np.int8), n, WIDTH) for n in none)
    bound, stop = np.full(queries, 1e6, np.float32), np.full(queries, rows)
    x, whole = np.zeros((queries, 128), np.int16), Decoded.all(np.zeros((rows, 128), np.int16))
    operands = (x, whole, np.zeros(queries, np.int64), 0)
    own, found = (*panels(listed), *as_queries(short, bound), stop), buffers(1 << 13)

    def work(_: int) -> None:
        for _ in range(times):
            if device == CPU:
                scan(*own, *operands, 0, QUERY_BLOCK, *found)
            else:
                list(scanned_on(device, listed, short, bound, stop, operands))

    return times * queries * rows / _timed([work], 2, workers)[0]
