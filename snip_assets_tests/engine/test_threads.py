"""Libraries are held to one thread while a pool works, and get back what they had."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from snip_assets.engine import threads
from snip_assets.engine.threads import AT_ONCE, ordered_map, overlapped


def _set(_: int = 0) -> tuple[int, ...]:
    return torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())


@pytest.mark.parametrize(
    ("limit", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", None)]
)
def test_a_container_has_the_cores_that_it_may_use(
    tmp_path: Path, limit: str, cores: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    here = threads.count(0, tmp_path / "none")
    assert threads.count(0, tmp_path / "cpu.max") == min(here, cores or here)
    assert threads.count(7, tmp_path / "cpu.max") == 7


def test_maps_that_overlap_give_back_what_there_was() -> None:
    # That of torch is among them, and is given back at the end.
    with threadpool_limits(3):
        before = _set()
        first, second = ordered_map(_set, range(9), 2), ordered_map(_set, range(9), 2)
        assert {*next(first), *next(second), *_set()} == {1}
        assert len([*first]) == 8
        assert set(_set()) == {1}
        second.close()
        assert _set() == before
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == before[0]


def test_maps_of_several_threads_give_back_what_there_was() -> None:
    before = _set()
    with ThreadPoolExecutor(4) as pool:
        maps = [pool.submit(lambda: [*ordered_map(_set, range(50), 2)]) for _ in range(12)]
        assert {number for found in maps for work in found.result() for number in work} == {1}
    assert _set() == before


def test_a_failed_map_gives_back_what_there_was() -> None:
    before = _set()
    with suppress(ZeroDivisionError):
        [*ordered_map(lambda item: 1 // item, range(9), 2)]
    assert _set() == before


def test_the_others_go_on_while_an_early_item_takes_long() -> None:
    done = threading.Semaphore(0)

    def work(item: int) -> int:
        if item:
            done.release()
            return item
        # Two a worker, the next, and those ahead; but for this one.
        return -1 if all(done.acquire(timeout=60) for _ in range(2 * 2 + 6)) else 0

    assert [*ordered_map(work, range(20), 2, ahead=6)] == [-1, *range(1, 20)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_overlapped_items_share_the_threads_and_take_turns(workers: int) -> None:
    asked, threads, shown = [], set(), ContextVar("shown", default="")

    def block(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return item

    def of(item: int) -> tuple[int, str]:
        def blocks() -> Iterator[int]:
            for number in range(7):
                asked.append(item)
                yield number

        return sum(ordered_map(block, blocks(), workers)) + item, shown.get()

    before = _set()
    token = shown.set("here")
    assert [*overlapped(of, range(9), workers)] == [(21 + item, "here") for item in range(9)]
    shown.reset(token)
    assert len(threads) <= workers
    # All blocks of one item are asked for before those of another.
    assert [asked[n * 7 : n * 7 + 7] for n in range(9)] == [[k] * 7 for k in asked[::7]]
    assert sorted(asked[::7]) == [*range(9)]
    assert _set() == before


def test_an_item_that_stops_half_way_lets_the_others_go_on() -> None:
    def of(item: int) -> int:
        blocks = ordered_map(lambda number: number, range(40), 2)
        taken = [next(blocks) for _ in range(item + 1)]
        # The map stays where it is, as that of an error with a traceback does.
        kept.append(blocks)
        return sum(taken)

    kept: list[object] = []
    assert [*overlapped(of, range(6), 2)] == [0, 1, 3, 6, 10, 15]


def test_a_failed_item_ends_those_beside_it() -> None:
    def of(item: int) -> int:
        if item == 0:
            time.sleep(0.05)
            raise ZeroDivisionError
        return sum(1 for _ in ordered_map(lambda _: time.sleep(0.01), range(100_000), 1))

    before = _set()
    with pytest.raises(ZeroDivisionError):
        [*overlapped(of, range(AT_ONCE), 1)]
    assert _set() == before
