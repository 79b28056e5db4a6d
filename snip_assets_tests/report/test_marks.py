"""Marks of people: taken in, kept, counted; nonsense refused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine.audit import wilson
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.report import gallery_pairs, marks

from .conftest import Finished

HEAD = "row,earlier_row,distance,set,mark\n"


@pytest.fixture
def layout(finished: Finished, tmp_path: Path) -> Layout:
    """Another output folder of the same data set, without marks."""
    copy = Layout(tmp_path / "out")
    copy.root.mkdir()
    copy.registry.write_text(finished.layout.registry.read_text())
    return copy


def _csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "marks.csv"
    path.write_text(text)
    return path


def test_marks_add_up_and_the_last_one_counts(
    layout: Layout, finished: Finished, tmp_path: Path
) -> None:
    pairs, _ = gallery_pairs.random_and_inside(finished.run, 4)
    lines = [f"{p.row},{p.earlier_row},{p.raw:.6f},random,right" for p in pairs]
    taken = marks.take_in(layout, _csv(tmp_path, HEAD + "\n".join(lines)))
    counts = {"read": 4, "new": 4, "changed": 0, "withdrawn": 0, "outdated": 0, "total": 4}
    assert taken == counts
    again = f"{pairs[0].row},{pairs[0].earlier_row},,random,wrong\n5,3,,outside,wrong\n"
    taken = marks.take_in(layout, _csv(tmp_path, HEAD + again))
    assert taken == {**counts, "read": 2, "new": 1, "changed": 1, "total": 5}
    table = marks.load(layout)
    assert marks.shares(table, 0.1) == {"random": wilson(3, 4), "outside": wilson(0, 1)}
    by_pair = {(m["row"], m["earlier_row"]): m for m in table.to_pylist()}
    for pair in pairs:  # computed where the CSV has none
        assert by_pair[pair.row, pair.earlier_row]["distance"] == pytest.approx(pair.distance)
    assert sum(n for *_, n in marks.by_distance(table)) == 5


def test_marks_of_rows_that_were_replaced_do_not_count(
    layout: Layout, finished: Finished, tmp_path: Path
) -> None:
    pairs, _ = gallery_pairs.random_and_inside(finished.run, 4)
    lines = [f"{p.row},{p.earlier_row},,random,right" for p in pairs]
    marks.take_in(layout, _csv(tmp_path, HEAD + "\n".join(lines)))
    table = marks.load(layout)
    assert marks.current(layout).equals(table)
    far = pa.array(np.array([0.05, 0, 0, 0], np.float32) + table["distance"].to_numpy())
    pq.write_table(table.set_column(2, table.schema.field("distance"), far), marks.path_of(layout))
    assert marks.current(layout).equals(table[1:])
    taken = marks.take_in(layout, _csv(tmp_path, HEAD + "5,3,,outside,wrong\n"))
    assert (taken["outdated"], taken["total"]) == (1, 4)


def test_an_older_csv_does_not_judge_the_rows_that_came_instead(
    layout: Layout, finished: Finished, tmp_path: Path
) -> None:
    first, second, *_ = gallery_pairs.random_and_inside(finished.run, 4)[0]
    ends = f"{first.row},{first.earlier_row}"
    marks.take_in(layout, _csv(tmp_path, f"{HEAD}{ends},{first.raw:.6f},random,right\n"))
    former = marks.load(layout)
    # As they were shown when those row ids were of another shard's rows.
    lines = [f"{ends},{first.raw + 0.01:.6f},random,none"]
    lines += [f"{second.row},{second.earlier_row},{second.raw + 0.01:.6f},random,wrong"]
    taken = marks.take_in(layout, _csv(tmp_path, HEAD + "\n".join(lines)))
    assert (taken["read"], taken["outdated"], taken["total"]) == (2, 2, 1)
    assert marks.load(layout).equals(former)


def test_marks_are_taken_back_and_stay_with_the_random_sample(
    layout: Layout, finished: Finished, tmp_path: Path
) -> None:
    pairs, _ = gallery_pairs.random_and_inside(finished.run, 3)
    lines = [f"{p.row},{p.earlier_row},,random,right" for p in pairs]
    marks.take_in(layout, _csv(tmp_path, HEAD + "\n".join(lines)))
    again = [f"{pairs[0].row},{pairs[0].earlier_row},,inside,wrong"]
    again += [f"{pairs[1].row},{pairs[1].earlier_row},,random,none", "5,3,,outside,none"]
    taken = marks.take_in(layout, _csv(tmp_path, HEAD + "\n".join(again)))
    counts = {"read": 3, "new": 0, "changed": 1, "withdrawn": 1, "outdated": 0, "total": 2}
    assert taken == counts
    table = marks.load(layout)
    assert marks.shares(table, 0.1) == {"random": wilson(1, 2)}
    # At a smaller threshold none of them is a pair.
    nearest = min(p.distance for p in pairs)
    assert marks.shares(table, nearest / 2) == {}


def test_marks_change_the_version(layout: Layout, tmp_path: Path) -> None:
    before = marks.version(layout)
    marks.take_in(layout, _csv(tmp_path, HEAD))
    assert marks.version(layout) == before and not marks.path_of(layout).exists()
    marks.take_in(layout, _csv(tmp_path, HEAD + "5,3,,random,right\n"))
    assert marks.version(layout) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,earlier_row,mark\n", "no column set"),
        (HEAD + "3,5,,random,right\n", "line 2: row 3 and earlier_row 5 are no pair"),
        (HEAD + "5,3,,random,right\n750,3,,random,right\n", "line 3: row 750"),
        (HEAD + "-5,3,,random,right\n", "numbers"),
        (HEAD + "5,3,,somewhere,right\n", "set 'somewhere'"),
        (HEAD + "5,3,,random,maybe\n", "mark 'maybe'"),
        (HEAD + "5\n", "numbers"),
        (HEAD + "5,3,near,random,right\n", "line 2: distance 'near'"),
        (HEAD + "5,3,inf,random,right\n", "line 2: distance 'inf'"),
        (HEAD + "9" * 5000 + ",3,,random,right\n", "numbers"),
        ("", "no column row"),
    ],
)
def test_nonsense_is_refused(layout: Layout, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        marks.take_in(layout, _csv(tmp_path, text))
    assert not marks.path_of(layout).exists()


def test_a_file_that_is_no_csv(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(BadInputError, match="CSV"):
        marks.take_in(layout, path)
    with pytest.raises(BadInputError, match="no such file"):
        marks.take_in(layout, tmp_path / "none.csv")


def test_marks_that_two_processes_take_in_at_once_add_up(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = marks.write_parquet

    def late(*values: Any) -> None:
        # Both have read what was there.
        time.sleep(0.2)
        write(*values)

    monkeypatch.setattr(marks, "write_parquet", late)
    places = [tmp_path / f"{n}.csv" for n in range(2)]
    for n, place in enumerate(places):
        place.write_text(f"{HEAD}5,{n},,outside,wrong\n")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda place: marks.take_in(layout, place), places))
    assert len(marks.load(layout)) == 2
