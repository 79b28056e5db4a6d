"""Schedules as Dagster sees them."""

from __future__ import annotations

import datetime
from pathlib import Path

import dagster as dg

from snip_assets import automation
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import seal
from snip_assets.options import SAMPLE
from snip_assets.resources import DataSet


def test_the_nightly_sample_is_drawn_by_the_date(tmp_path: Path) -> None:
    data = DataSet.of(SAMPLE, tmp_path / "out", Settings())
    moment = datetime.datetime(2031, 2, 3, 3, tzinfo=datetime.timezone.utc)
    context = dg.build_schedule_context(scheduled_execution_time=moment, resources={"data": data})
    assert isinstance(automation.nightly_verification(context), dg.SkipReason)
    data.layout.dup_bitmap.mkdir(parents=True)
    seal(data.layout.dup_bitmap, {})
    request = automation.nightly_verification(context)
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["resources"]["verifying"]["config"]["seed"] == 20310203
