"""The keep rule: in which order rows are visited, so which copy stays.

    neighbours                                  most neighbours first (the default)
    first                                       lowest row id first
    largest(expression), highest(expression)    greatest value first
    smallest(expression), lowest(expression)    least value first

An expression is arithmetic over metadata columns: numbers, column names (any case; "in double
quotes" if they are no plain names), + - * / and parentheses. Nothing else parses. Values are
float64, times are microseconds since 1970 whatever the unit of their column; missing values come
last, whatever the direction; ties go to the lowest row id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInputError
from .metadata import describe, find_column
from .storage.parquet_source import parquet_file, readable

BLOCK_ROWS = 1 << 18
MOST_TOKENS = 200
USAGE = (
    "`neighbours`, `first`, or largest(...), smallest(...), highest(...), lowest(...) around "
    "arithmetic over metadata columns, such as largest(original_width*original_height)"
)
_RULE = re.compile(r"(largest|highest|smallest|lowest)\s*\((.*)\)", re.DOTALL)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r'|"(?P<quoted>[^"]+)"|(?P<sign>[-+*/()]))'
)

# A number, a column ("column", name), or (function, operands ...) of pyarrow.compute.
Node = float | tuple


@dataclass(frozen=True)
class Rule:
    """A parsed keep rule.

    Attributes
    ----------
    kind
        `neighbours`, `first`, `largest` or `smallest`.
    expression
        Tree of the expression, None for the first two.
    columns
        Columns that it names, as written.
    """

    kind: Literal["neighbours", "first", "largest", "smallest"]
    expression: Node | None = None
    columns: tuple[str, ...] = ()


def parse(text: str) -> Rule:
    """Read a keep rule.

    Raises
    ------
    BadInputError
        It is not one; the message shows where, and what a rule looks like.
    """
    stripped = text.strip()
    if stripped in ("neighbours", "first"):
        return Rule("first" if stripped == "first" else "neighbours")
    match = _RULE.fullmatch(stripped)
    if match is None:
        raise BadInputError(f"keep rule {text[:80]!r} is not understood; use {USAGE}.")
    parser = _Parser(match[2])
    tree = parser.parse()
    if not parser.columns:
        raise BadInputError(f"keep rule {text!r} names no column; use {USAGE}.")
    kind: Literal["largest", "smallest"] = (
        "largest" if match[1] in ("largest", "highest") else "smallest"
    )
    return Rule(kind, tree, tuple(dict.fromkeys(parser.columns)))


class _Parser:
    """Recursive descent: sum = product (+|- product)*, product = factor (*|/ factor)*."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise self._error(text[at:].strip())
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        if len(self.tokens) > MOST_TOKENS:
            raise BadInputError(f"keep expression is too long: more than {MOST_TOKENS} words.")
        self.tokens.reverse()

    def parse(self) -> Node:
        tree = self._sum()
        if self.tokens:
            raise self._error(self.tokens[-1][1])
        return tree

    def _error(self, where: str) -> BadInputError:
        at = f"at {where[:40]!r}" if where else "at its end"
        return BadInputError(f"keep expression {self.text!r} is not understood {at}; use {USAGE}.")

    def _sign(self, signs: str) -> str | None:
        if self.tokens and self.tokens[-1][0] == "sign" and self.tokens[-1][1] in signs:
            return self.tokens.pop()[1]
        return None

    def _sum(self) -> Node:
        tree = self._product()
        while sign := self._sign("+-"):
            tree = ("add" if sign == "+" else "subtract", tree, self._product())
        return tree

    def _product(self) -> Node:
        tree = self._factor()
        while sign := self._sign("*/"):
            tree = ("multiply" if sign == "*" else "divide", tree, self._factor())
        return tree

    def _factor(self) -> Node:
        if self._sign("-"):
            return ("negate", self._factor())
        if self._sign("("):
            tree = self._sum()
            if not self._sign(")"):
                raise self._error(self.tokens[-1][1] if self.tokens else "")
            return tree
        if not self.tokens or self.tokens[-1][0] == "sign":
            raise self._error(self.tokens[-1][1] if self.tokens else "")
        kind, value = self.tokens.pop()
        if kind == "number":
            return float(value)
        self.columns.append(value)
        return ("column", value)


def check(rule: Rule, path: Path) -> None:
    """Raise BadInputError if a metadata file lacks a column of the rule, or its type is wrong."""
    if rule.columns:
        with parquet_file(path) as file:
            _columns(rule, path, file.schema_arrow)


def values(rule: Rule, path: Path, rows: int) -> Iterator[np.ndarray]:
    """Yield the expression for the rows of a metadata file, in blocks.

    Memory: the columns it names, `BLOCK_ROWS` rows at a time.

    Returns
    -------
    Iterator of ndarray
        float64[n]; NaN where a value is missing.

    Raises
    ------
    BadInputError
        A column is missing or no number (the message lists what there is), or the file does not
        have `rows` rows.
    """
    assert rule.expression is not None
    with parquet_file(path) as file:
        if file.metadata.num_rows != rows:
            raise BadInputError(f"{path}: {file.metadata.num_rows} rows, expected {rows}.")
        columns = _columns(rule, path, file.schema_arrow)
        with readable(path):
            for batch in file.iter_batches(BLOCK_ROWS, columns=sorted(set(columns.values()))):
                numbers = {name: _number(batch.column(columns[name])) for name in rule.columns}
                result = _evaluate(rule.expression, numbers)
                yield pc.fill_null(result, np.nan).to_numpy(zero_copy_only=False)


def _columns(rule: Rule, path: Path, schema: pa.Schema) -> dict[str, str]:
    found = {}
    for name in rule.columns:
        column = name if name in schema.names else find_column(schema, [name.lower()])
        if column is None:
            raise BadInputError(
                f"{path}: no column {name!r} for the keep rule; it has {describe(schema)}."
            )
        kind = schema.field(column).type
        if not any(test(kind) for test in _ORDERED):
            raise BadInputError(
                f"{path}: column {column} is {kind}, not a number, for the keep rule; it has "
                f"{describe(schema)}."
            )
        found[name] = column
    return found


_ORDERED = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_timestamp,
    pa.types.is_date,
)


def _number(column: pa.Array) -> pa.Array:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"), safe=False)
    if pa.types.is_timestamp(column.type):
        # One unit for all shards and columns.
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return column.cast(pa.float64(), safe=False)


def _evaluate(node: Node, numbers: dict[str, pa.Array]) -> pa.Array:
    if not isinstance(node, tuple):
        return pa.scalar(node, pa.float64())
    if node[0] == "column":
        return numbers[node[1]]
    return pc.call_function(node[0], [_evaluate(child, numbers) for child in node[1:]])
