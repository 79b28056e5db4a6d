"""Arrivals in any split: the same bytes as all at once, and only what changed is decided again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine import group_table
from snip_assets.engine.changed import Former, changed_pairs
from snip_assets.engine.metadata import Metadata
from snip_assets.engine.pairs import read_pairs
from snip_assets.engine.publish import dup_bitmap
from snip_assets.engine.storage.files import checksum

from .pair_tools import write_pairs
from .test_groups import graphs
from .test_keep import with_copies


def split(folder, rows, pairs, cuts, values):
    """Pair files and metadata files of the rows between the cuts."""
    files, paths = [], []
    for number, (low, high) in enumerate(pairwise(cuts)):
        own = [p for p in pairs if low <= p[0] < high]
        files.append(write_pairs(folder / f"{number}.parquet", own, 3))
        paths.append(folder / f"metadata_{number}.parquet")
        names = [f"http://x/{row}" if row % 5 else None for row in range(low, high)]
        table = pa.table(
            {"url": pa.array(names, pa.string()), "score": pa.array(values[low:high], pa.float64())}
        )
        pq.write_table(table, paths[-1])
    return files, paths


def contents(folder):
    return {p.relative_to(folder): checksum(p) for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=60, deadline=None)
@given(
    graphs(),
    st.lists(st.integers(0, 29), max_size=8),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from(["neighbours", "first", "largest(score)"]),
    st.sampled_from([None, 0.05, 0.1]),
    st.booleans(),
    st.data(),
)
def test_any_split_gives_the_bytes_of_all_at_once(
    tmp_path_factory, graph, copies, places, rule, most, decided, data
):
    folder = tmp_path_factory.mktemp("split")
    rows, pairs = with_copies(*graph, copies)
    values = data.draw(st.lists(st.sampled_from([0.5, 1.0, None]), min_size=rows, max_size=rows))
    cuts = [0, *sorted({p for p in places if 0 < p < rows}), rows]
    files, paths = split(folder, rows, pairs, cuts, values)
    former = None
    for count in range(1, len(cuts)):
        known = Metadata([*map(str, range(count))], paths[:count], np.array(cuts[: count + 1]))
        given = {"max_distance": most, "rule": rule, "metadata": known}
        step, fresh = folder / f"step-{count}", folder / f"fresh-{count}"
        facts = group_table.duplicate_groups(
            files[:count], cuts[count], step, former=former, **given
        )
        assert facts == group_table.duplicate_groups(files[:count], cuts[count], fresh, **given)
        assert contents(step) == contents(fresh)
        dup_bitmap(step, folder / f"bitmap-{count}", ())
        dup_bitmap(fresh, folder / f"fresh-bitmap-{count}", ())
        assert contents(folder / f"bitmap-{count}") == contents(folder / f"fresh-bitmap-{count}")
        former = Former(step, files[:count], decided)


def test_pairs_of_groups_that_got_none_are_left_out(tmp_path):
    old = write_pairs(tmp_path / "old.parquet", [(1, 0, 0.01), (3, 2, 0.02), (4, 3, 0.3)])
    new = write_pairs(tmp_path / "new.parquet", [(6, 2, 0.03), (7, 0, 0.2)])
    labels = np.array([0, 0, 2, 2, 4, 5, 2, 7], np.uint32)
    changed_pairs([old, new], [new], labels, tmp_path / "changed.parquet", 0.1)
    found = read_pairs(tmp_path / "changed.parquet")
    assert found.row.tolist() == [3, 6] and found.earlier_row.tolist() == [2, 2]


def test_urls_are_looked_up_for_new_representatives_alone(tmp_path, monkeypatch):
    pairs = [(1, 0, 0.01), (5, 4, 0.02), (8, 7, 0.01)]
    files, paths = split(tmp_path, 9, pairs, [0, 6, 9], [1.0] * 9)
    one = Metadata(["0"], paths[:1], np.array([0, 6]))
    group_table.duplicate_groups(files[:1], 6, tmp_path / "old", metadata=one)
    asked = []
    read = Metadata.columns
    monkeypatch.setattr(
        Metadata,
        "columns",
        lambda self, rows, *names: asked.extend(rows) or read(self, rows, *names),
    )
    both = Metadata(["0", "1"], paths, np.array([0, 6, 9]))
    former = Former(tmp_path / "old", files[:1], decided=True)
    group_table.duplicate_groups(files, 9, tmp_path / "new", metadata=both, former=former)
    assert set(asked) == {7}


@pytest.mark.parametrize("rows", [0, 3])
def test_an_arrival_without_pairs(tmp_path, rows):
    files, paths = split(tmp_path, 6, [(1, 0, 0.01)], [0, 6, 6 + rows], [1.0] * 9)
    one = Metadata(["0"], paths[:1], np.array([0, 6]))
    group_table.duplicate_groups(files[:1], 6, tmp_path / "old", metadata=one)
    both = Metadata(["0", "1"], paths, np.array([0, 6, 6 + rows]))
    former = Former(tmp_path / "old", files[:1], decided=True)
    group_table.duplicate_groups(files, 6 + rows, tmp_path / "new", metadata=both, former=former)
    kept = np.load(tmp_path / "new" / "kept_row.npy")
    assert kept.tolist() == [0, 0, *range(2, 6 + rows)]
