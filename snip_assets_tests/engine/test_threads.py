"""Libraries are held to one thread while a pool works, and get back what they had."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from snip_assets.engine.threads import ordered_map


def _set(_: int = 0) -> tuple[int, ...]:
    return torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())


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
