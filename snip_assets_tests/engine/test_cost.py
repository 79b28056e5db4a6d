"""Time and memory of a piece of work."""

import sys
import time

import numpy as np
import pytest

from snip_assets.engine.cost import measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LARGE = 200 << 20


def test_memory_is_that_of_the_work_and_not_of_what_was_before() -> None:
    with measured() as large:
        np.ones(LARGE, np.uint8).sum()
        time.sleep(0.12)
    with measured() as small:
        time.sleep(0.12)
    assert large.peak_memory is not None and small.peak_memory is not None
    assert large.peak_memory - small.peak_memory > 0.8 * LARGE
    assert large.facts.keys() == {"seconds", "peak_memory"}
