"""Numbers out of range are refused before anything is made with them."""

import dataclasses
from math import inf, nan

import pytest

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.settings import BOUNDS, Settings


def test_every_number_has_bounds() -> None:
    numbers = {k for k, v in dataclasses.asdict(Settings()).items() if isinstance(v, (int, float))}
    assert numbers == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_beyond_them_is_refused_by_name(name: str) -> None:
    least, largest = BOUNDS[name]
    dataclasses.replace(Settings(), **{name: least})
    for value in (least - 1, nan, inf, *([] if largest == inf else [largest + 1])):
        with pytest.raises(BadInputError, match=f"^{name} "):
            dataclasses.replace(Settings(), **{name: value})
