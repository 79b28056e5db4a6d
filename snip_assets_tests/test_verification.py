"""Bounds of estimates."""

from __future__ import annotations

import dagster as dg

from snip_assets import verification
from snip_assets.engine.audit import wilson


def test_bounds_count_only_when_the_whole_interval_is_beyond() -> None:
    error, warn = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
    assert verification.below(wilson(1000, 1000), 1.0, 1.0) is None
    assert verification.below(wilson(999, 1000), 1.0, 1.0) is error
    assert verification.below(wilson(992, 1000), 0.995, 0.9) is None
    assert verification.below(wilson(970, 1000), 0.995, 0.9) is warn
    assert verification.below(wilson(0, 0), 1.0, 1.0) is None
    assert verification.above(wilson(0, 1000), 0.0, 0.0) is None
    assert verification.above(wilson(1, 1000), 0.0, 0.01) is warn
    assert verification.above(wilson(1, 1000), 0.0, 0.0) is error
