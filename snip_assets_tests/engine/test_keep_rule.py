"""What parses as a keep rule, and what it says when something does not."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.keep_rule import check, parse, values


@pytest.fixture
def file(tmp_path):
    table = pa.table(
        {
            "WIDTH": pa.array([3, None, 5], pa.int32()),
            "my height": pa.array([2.0, 4.0, 0.0]),
            "ok": [True, False, None],
            "day": [datetime.date(2020, 1, day) for day in (3, 1, 2)],
            "url": ["a", "b", "c"],
        }
    )
    pq.write_table(table, tmp_path / "metadata_0.parquet")
    return tmp_path / "metadata_0.parquet"


def evaluate(text, file):
    return np.concatenate(list(values(parse(text), file, 3)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("largest(width)", [3, np.nan, 5]),
        ('highest(width * "my height")', [6, np.nan, 0]),
        ('smallest(-("my height" + 2) / 2e0 - .5)', [-2.5, -3.5, -1.5]),
        ("lowest(2 - 1 - WIDTH)", [-2, np.nan, -4]),
        ("largest(1 + 2 * width)", [7, np.nan, 11]),
        ("largest(8 / 2 / 2 * ok)", [2, 0, np.nan]),
        ('largest(1 / "my height")', [0.5, 0.25, np.inf]),
        ("largest(day)", [1578009600e6, 1577836800e6, 1577923200e6]),
    ],
)
def test_arithmetic_over_columns(file, text, expected):
    np.testing.assert_array_equal(evaluate(text, file), expected)


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns"),
     pa.date32(), pa.date64()],
)  # fmt: skip
def test_a_time_is_the_same_number_in_every_unit(tmp_path, kind):
    days = [datetime.datetime(2020, 1, 1), None, datetime.datetime(1969, 12, 31)]
    table = pa.table({"seen": pa.array(days, pa.timestamp("s")).cast(kind)})
    pq.write_table(table, tmp_path / "metadata_0.parquet")
    found = evaluate("largest(seen)", tmp_path / "metadata_0.parquet")
    np.testing.assert_array_equal(found, [1577836800e6, np.nan, -86400e6])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best(width)",
        "largest",
        "largest()",
        "largest(1)",
        "largest(width",
        "largest((width)",
        "largest(width))",
        "largest(width*)",
        "largest(width height)",
        "largest(abs(width))",
        "largest(width; drop table x)",
        "largest((select 1 from 'x.parquet'))",
        "largest(__import__('os'))",
        "largest(width ** 2)",
        "largest(" + "(" * 500 + "width" + ")" * 500 + ")",
    ],
)
def test_nothing_else_parses(text):
    with pytest.raises(BadInputError, match=r"keep (rule|expression)"):
        parse(text)


def test_a_wrong_column_lists_the_columns(file):
    with pytest.raises(BadInputError, match=r"no column 'pixels'.*WIDTH \(int32\).*url \(string\)"):
        check(parse("largest(pixels)"), file)
    with pytest.raises(BadInputError, match=r"column url is string, not a number.*WIDTH \(int32\)"):
        check(parse("largest(URL)"), file)
    with pytest.raises(BadInputError, match="3 rows, expected 4"):
        next(values(parse("largest(width)"), file, 4))
