"""Rows of a file are those that numpy reads, and a file cut short is told."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.features import Features
from snip_assets.engine.storage import row_file
from snip_assets.engine.storage.row_file import LOOK, RowFile

ROWS = 40
places = st.lists(st.integers(0, ROWS - 1), max_size=3 * LOOK)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[RowFile]:
    folder = tmp_path_factory.mktemp("rows")
    x = np.random.default_rng(0).standard_normal((ROWS, 6))
    arrays = [x, x.astype(np.float16), x[:, 0].copy(), np.asfortranarray(x), x.astype(">f4")]
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    return [RowFile(folder / f"{number}.npy") for number in range(len(arrays))]


def copy(file: RowFile, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
    row_file.copy([file], np.zeros(len(rows), np.int64), rows, out, places)


@settings(deadline=None)
@given(rows=places)
def test_any_rows_in_any_order(files: list[RowFile], rows: list[int]) -> None:
    wanted = np.array(rows, np.int64)
    for file in files:
        out = np.empty((len(rows), *file.shape[1:]), file.dtype)
        to = np.random.default_rng(len(rows)).permutation(len(rows))
        copy(file, wanted, out, to)
        np.testing.assert_array_equal(out[to], file.array[wanted])


@settings(deadline=None)
@given(start=st.integers(0, ROWS), length=st.integers(0, ROWS))
def test_blocks_are_slices(files: list[RowFile], start: int, length: int) -> None:
    for file in files:
        block = file.block(start, start + length)
        np.testing.assert_array_equal(block, file.array[start : start + length])


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 4 * ROWS - 1), max_size=3 * LOOK))
def test_rows_of_many_files(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    folder = tmp_path_factory.mktemp("shards")
    x = np.random.default_rng(0).standard_normal((4 * ROWS, 3)).astype(np.float16)
    offsets = np.array([0, 7, 7, 3 * ROWS, 4 * ROWS])
    paths = [folder / f"{number}.npy" for number in range(4)]
    for path, start, stop in zip(paths, offsets[:-1], offsets[1:], strict=True):
        np.save(path, x[start:stop])
    wanted = np.array(rows, np.int64)
    for limit in (row_file.LIMIT, 0):  # From the maps where there are enough rows, and by position.
        with mock.patch.object(row_file, "LIMIT", limit):
            np.testing.assert_array_equal(Features(paths, offsets).take(wanted), x[wanted])
    with pytest.raises(IndexError):
        Features(paths, offsets).take(np.append(wanted, 4 * ROWS))


@pytest.mark.parametrize(("width", "share"), [(100, 0.9), (100, 0.3), (100, 0.02), (20_000, 0.5)])
def test_rows_near_each_other_are_read_with_what_lies_between(
    tmp_path: Path, width: int, share: float
) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((500_000 // width, width), np.float32)
    np.save(tmp_path / "x.npy", x)
    wanted = np.flatnonzero(random.random(len(x)) < share)
    out = np.empty((len(wanted), width), np.float32)
    row_file.copy(
        [RowFile(tmp_path / "x.npy")],
        np.zeros(len(wanted), np.int64),
        wanted,
        out,
        np.arange(len(wanted))[::-1].copy(),
        mapped=False,
    )
    np.testing.assert_array_equal(out[::-1], x[wanted])


def test_no_such_row(files: list[RowFile]) -> None:
    for row in (-1, ROWS):
        with pytest.raises(IndexError):
            copy(files[0], np.array([row]), np.empty((1, 6)), np.array([0]))
        with pytest.raises(IndexError):
            copy(files[0], np.array([0]), np.empty((1, 6)), np.array([row]))


def test_a_file_cut_short_while_open_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 8)))
    file = RowFile(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", file.array.offset + 50 * 64)
    with pytest.raises(BadInputError, match="row 50 cannot be read"):
        file.block(0, 100)
    rows = np.delete(np.arange(100), np.arange(10, 30))
    with pytest.raises(BadInputError, match="row 50 cannot be read"):
        copy(file, rows, np.empty((100, 8)), rows)
