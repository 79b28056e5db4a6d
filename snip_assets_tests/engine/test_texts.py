"""Texts from anywhere in an Arrow file are those that Arrow reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine.texts import Texts

SOME = st.lists(st.none() | st.text(max_size=9), max_size=40)


def written(path: Path, texts: list[str | None], batch_rows: int) -> None:
    table = pa.table({"number": range(len(texts)), "text": pa.array(texts, pa.large_string())})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=batch_rows)


@settings(deadline=None)
@given(st.data(), SOME, st.integers(1, 11))
def test_texts_are_those_that_arrow_reads(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    texts: list[str | None],
    batch_rows: int,
) -> None:
    path = tmp_path_factory.mktemp("texts") / "texts.arrow"
    written(path, texts, batch_rows)
    places = np.array(
        data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=60)) if texts else [], np.int64
    )
    column = Texts(path, "text")
    found = column.take(places)
    found.validate(full=True)
    assert found.type == pa.large_string()
    assert found.to_pylist() == [texts[place] for place in places]
    order = np.argsort(places, kind="stable")
    assert column.take(places[order], order).equals(found)


def test_texts_of_many_lengths_keep_their_letters(tmp_path: Path) -> None:
    texts: list[str | None] = ["é" * (n % 300) if n % 7 else None for n in range(2_000)]
    written(tmp_path / "texts.arrow", texts, 512)
    places = np.random.default_rng(0).permutation(2_000)
    found = Texts(tmp_path / "texts.arrow", "text").take(places)
    assert found.to_pylist() == [texts[place] for place in places]
    assert found.null_count == sum(text is None for text in texts)
    for wrong in (-1, 2_000):
        with pytest.raises(IndexError, match=f"2000 texts, asked for {wrong}"):
            Texts(tmp_path / "texts.arrow", "text").take(np.array([wrong]))
