"""The one place where everything meets: assets, checks, jobs, sensors, resources."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Backfill policies are marked beta in each Dagster release so far; pinned by our tests instead.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from . import assets, automation, checks, kubernetes, sensors, sqlite_engines  # noqa: E402
from .report import marks_check  # noqa: E402
from .resources import Audit, DataSet, Watch  # noqa: E402

sqlite_engines.install()


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions, with resources from the environment unless they are given.

    Parameters
    ----------
    resource_overrides
        Name -> resource: `data` is the data set; `watch` and `verifying` are settings of the
        sensors and of the checks.
    """
    return dg.Definitions(
        assets=dg.with_source_code_references(dg.load_assets_from_package_module(assets)),
        asset_checks=[*checks.ALL, checks.checksums, marks_check.reviewed_pairs],
        jobs=automation.JOBS,
        sensors=sensors.SENSORS,
        schedules=automation.SCHEDULES,
        resources={
            "data": DataSet.from_environment(),
            "watch": Watch(),
            "verifying": Audit(),
            **(resource_overrides or {}),
        },
        executor=kubernetes.executor(),
    )


defs = build_defs()
