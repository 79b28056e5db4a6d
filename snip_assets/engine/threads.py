"""The one place that decides how many threads run.

Work is cut into blocks whose borders do not depend on the number of threads, and every block is
computed by one thread: torch, BLAS and OpenMP are held to one thread each inside the pool. So
results are the same for any number of workers, and cores are never oversubscribed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import torch
from threadpoolctl import OpenBLASController, ThreadpoolController

# Items of `overlapped`.
AT_ONCE = 2
A = TypeVar("A")
B = TypeVar("B")


def count(workers: int = 0, limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Threads to use: `workers`, or every core this process may run on when 0.

    Parameters
    ----------
    limit
        Where Linux says how many microseconds of how many a container may run (cgroup v2).
    """
    if workers > 0:
        return workers
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        # "max" in place of the first where there is no limit.
        quota, period = map(int, limit.read_text().split())
        cores = min(cores, max(1, -(-quota // period)))
    return cores


def _free() -> None:
    """Let any thread set the threads of OpenBLAS, not only the one that set them first."""
    OpenBLASController.clear_controlling_thread(force=True)


class _Held:
    """Libraries held to one thread for as long as anyone asks for it.

    Who asks last gives back what there was before the first: those who ask need not leave in
    turn, as two that each gave back what they had found would have to.
    """

    def __init__(self, libraries: str) -> None:
        self._libraries, self._lock, self._asking = libraries, threading.Lock(), 0

    @contextmanager
    def __call__(self, found: ThreadpoolController) -> Iterator[None]:
        with self._lock:
            if not self._asking:
                _free()
                self._limits = found.select(user_api=self._libraries).limit(limits=1)
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                if not self._asking:
                    _free()
                    self._limits.restore_original_limits()
                    _free()


class _OfThread(threading.local):
    """OpenMP counts threads for each thread that calls it, most BLAS for the process."""

    def __init__(self) -> None:
        self.openmp = _Held("openmp")


_blas = _Held("blas")
_own = _OfThread()


@lru_cache(1)
def _libraries(modules: int) -> ThreadpoolController:
    """Those of this process; looked for again, which takes 1 ms, once more modules are loaded."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[ThreadpoolController]:
    """Hold torch, BLAS and OpenMP to one thread: sums then do not depend on the cores."""
    found = _libraries(len(sys.modules))
    try:
        with _blas(found), _own.openmp(found):
            yield found
    finally:
        # Torch gives a new thread what was set last: by the threads of a pool, one.
        torch.set_num_threads(torch.get_num_threads())


def _start(found: ThreadpoolController) -> None:
    torch.set_num_threads(1)
    found.select(user_api="openmp").limit(limits=1)


class _Turn(threading.local):
    """For a thread that works on an item of `overlapped`: where its blocks go, and when.

    Attributes
    ----------
    pool
        Threads that it shares with the other items; None in all other threads.
    lock
        Held by the one whose blocks go there now.
    mine
        Whether that is this thread.
    """

    pool: Executor | None = None
    mine = False

    def share(self, pool: Executor, lock: threading.Lock) -> None:
        """Hand all blocks of this thread to a pool, when it is its turn."""
        self.pool, self.lock = pool, lock

    def take(self) -> None:
        """Wait for it, unless this thread has it."""
        self.mine = self.mine or self.lock.acquire()

    def leave(self) -> None:
        """Let another begin."""
        if self.mine:
            self.mine = False
            self.lock.release()


_turn = _Turn()


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], workers: int = 0, ahead: int = 0
) -> Iterator[B]:
    """Apply a function to items in a thread pool; yield results in the order of the items.

    At most two items a worker are in flight, so memory is bounded by the size of a block; items
    are drawn from the iterable in the calling thread. Within an item of `overlapped`, the pool is
    the one that all its items share.

    Parameters
    ----------
    ahead
        Items in flight beyond these: where one may take as long as many others, which would else
        wait for it.
    """
    workers = count(workers)
    most = 2 * workers + ahead
    with one_thread() as found:
        if _turn.pool is None:
            with ThreadPoolExecutor(workers, "", _start, (found,)) as pool:
                yield from _in_order(pool, function, items, most)
        else:
            yield from _in_order(_turn.pool, function, _in_turn(items), most)


def _in_order(
    pool: Executor, function: Callable[[A], B], items: Iterable[A], most: int
) -> Iterator[B]:
    """Results in the order of the items, `most` of which are in flight beside the next."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _in_turn(items: Iterable[A]) -> Iterator[A]:
    """The items, when it is this thread's turn; after the last one it is another's."""
    _turn.take()
    yield from items
    _turn.leave()


def overlapped(function: Callable[[A], B], items: Iterable[A], workers: int = 0) -> Iterator[B]:
    """As `ordered_map`, for a function that calls that itself: the next item begins as one ends.

    `AT_ONCE` items are under way, whose blocks go to the same threads: all of one, then all of the
    other. So the threads have work while one item is finished, which takes one thread alone.
    """

    def one(call: tuple[Context, A]) -> B:
        try:
            # Progress is shown where the caller wants it.
            return call[0].run(function, call[1])
        finally:
            _turn.leave()

    with (
        one_thread() as found,
        ThreadPoolExecutor(count(workers), "", _start, (found,)) as pool,
        ThreadPoolExecutor(AT_ONCE, "", _turn.share, (pool, threading.Lock())) as some,
    ):
        try:
            yield from _in_order(some, one, ((copy_context(), item) for item in items), AT_ONCE)
        except BaseException:
            # Nobody waits for the others to end.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prefetch(items: Iterator[A], pool: Executor) -> Iterator[A]:
    """The same items, each made by the pool before it is asked for: the first one from now on.

    Memory: one item more.
    """
    end = object()
    coming = pool.submit(next, items, end)

    def taken() -> Iterator[A]:
        nonlocal coming
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield cast(A, item)

    return taken()
