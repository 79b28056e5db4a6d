"""What only billions of rows would show, on sparse files: wide row ids, long lists, many parts."""

from pathlib import Path

import numpy as np

from snip_assets.engine import index
from snip_assets.engine.features import Features

BILLIONS = 5_000_000_000


def sparse(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """An .npy that takes no room on the disk until it is written to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


class NoTraining:
    """The trained index, as far as reading lists needs it."""

    lists = 3


def test_lists_beyond_four_billion_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "segment"
    ends = np.array([0, BILLIONS - 3, BILLIONS - 3, BILLIONS], np.int64)
    np.save((tmp_path / "offsets.npy"), ends)
    codes = sparse(folder / "codes.npy", (BILLIONS, 8), np.uint8)
    rows = sparse(folder / "rows.npy", (BILLIONS,), np.uint64)
    (tmp_path / "offsets.npy").rename(folder / "list_offsets.npy")
    last = np.arange(BILLIONS - 3, BILLIONS, dtype=np.uint64)
    rows[-3:], codes[-3:] = last, [[1] * 8, [2] * 8, [3] * 8]
    rows.flush(), codes.flush()
    assert (folder / "codes.npy").stat().st_blocks < 1 << 16
    merged = index.SnipIndex(NoTraining(), [index.ListFolder(folder, 0)])
    ids, found = merged.read_list(2)
    assert ids.dtype == np.uint64 and ids.tolist() == last.tolist()
    assert found[:, 0].tolist() == [1, 2, 3]
    assert merged.rows == BILLIONS and merged.list_sizes.tolist() == [BILLIONS - 3, 0, 3]


def test_rows_by_ids_beyond_four_billion(tmp_path: Path) -> None:
    big = sparse(tmp_path / "0.npy", (BILLIONS, 1), np.float16)
    big[-1] = 7
    np.save(tmp_path / "1.npy", np.array([[8], [9]], np.float16))
    offsets = np.array([0, BILLIONS, BILLIONS + 2])
    features = Features([tmp_path / "0.npy", tmp_path / "1.npy"], offsets)
    wanted = np.array([BILLIONS + 1, 0, BILLIONS - 1, BILLIONS], np.uint64)
    assert features.take(wanted)[:, 0].tolist() == [9, 0, 7, 8]


def test_thousands_of_parts_with_wide_ids(tmp_path: Path) -> None:
    """As many shards as LAION-2B has: against a plain sort; no limit of open files is met."""
    parts, lists, n, first = 2314, 97, 5, (1 << 32) - 6000
    random = np.random.default_rng(0)
    home = np.sort(random.integers(0, lists, (parts, n)), axis=1)
    codes = random.integers(0, 256, (parts, n, 2), np.uint8)
    made = []
    for number in range(parts):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.save(folder / "list_offsets.npy", np.searchsorted(home[number], np.arange(lists + 1)))
        np.save(folder / "codes.npy", codes[number])
        np.save(folder / "rows.npy", np.arange(n, dtype=np.uint32))
        made.append(index.ListFolder(folder, first + number * n))
    order = np.argsort(home.ravel(), kind="stable")
    # Two slices of lists.
    out = tmp_path / "merged"
    index.merge(made, out, first + parts * n, 70_000)
    rows = np.load(out / "rows.npy")
    assert rows.dtype == np.uint64 and int(rows.max()) > 1 << 32
    np.testing.assert_array_equal(rows, (first + order).astype(np.uint64))
    np.testing.assert_array_equal(np.load(out / "codes.npy"), codes.reshape(-1, 2)[order])
