"""What is held at once fits the memory, and no less of it is used than may be."""

from hypothesis import given
from hypothesis import strategies as st

from snip_assets.engine import choices
from snip_assets.engine.settings import Settings

GIB = 1 << 30
MEMORY = st.integers(1, 400).map(lambda eighths: eighths / 8)


@given(MEMORY, st.integers(8, 1024))
def test_queries_take_an_eighth_of_the_memory(memory_gb: float, dim: int) -> None:
    settings = Settings(memory_gb=memory_gb, dim=dim)
    row = 2 * dim
    most = memory_gb * GIB / 8
    assert most - row < choices.query_rows(settings) * row <= most


@given(MEMORY, st.integers(1, 10**9))
def test_as_many_groupings_at_once_as_fit(memory_gb: float, rows: int) -> None:
    settings = Settings(memory_gb=memory_gb, workers=5)
    # A GiB of sorters each, and 13 bytes a row.
    fit = [n for n in range(1, 6) if n * (13 * rows + GIB) <= memory_gb * GIB]
    assert choices.groupings(rows, settings) == max(fit, default=1)
