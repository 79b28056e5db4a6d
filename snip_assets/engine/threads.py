"""The one place that decides how many threads run.

Work is cut into blocks whose borders do not depend on the number of threads, and every block is
computed by one thread: torch, BLAS and OpenMP are held to one thread each inside the pool. So
results are the same for any number of workers, and cores are never oversubscribed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

A = TypeVar("A")
B = TypeVar("B")


def count(workers: int = 0) -> int:
    """Threads to use: `workers`, or every core this process may run on when 0."""
    if workers > 0:
        return workers
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _one_thread() -> None:
    torch.set_num_threads(1)


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int = 0) -> Iterator[B]:
    """Apply a function to items in a thread pool; yield results in the order of the items.

    At most two items a worker are in flight, so memory is bounded by the size of a block; items
    are drawn from the iterable in the calling thread.
    """
    workers = count(workers)
    before = torch.get_num_threads()
    with threadpool_limits(1), ThreadPoolExecutor(workers, initializer=_one_thread) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    torch.set_num_threads(before)
