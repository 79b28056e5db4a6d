"""One pod a station on Kubernetes: who runs the steps of a run, and with what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml


def executor(environment: Mapping[str, str] = os.environ) -> dg.ExecutorDefinition:
    """Steps in the process of the run; with SNIP_K8S_STATIONS, each in a pod of its own.

    SNIP_K8S_STATIONS names a YAML file, name of an asset -> `container_config`, `pod_spec_config`
    and so on, in Kubernetes' own words (dagster-k8s's `per_step_k8s_config`); the name `default`
    is for all steps.

    Raises
    ------
    ValueError
        The file does not hold such a table, or dagster-k8s is not installed.
    """
    file = environment.get("SNIP_K8S_STATIONS", "")
    if not file:
        return dg.in_process_executor
    try:
        from dagster_k8s import k8s_job_executor
    except ImportError as error:
        raise ValueError(
            "SNIP_K8S_STATIONS is set, but dagster-k8s is not installed; pip install "
            "'snip_assets[k8s]'."
        ) from error
    config = executor_config(Path(file))
    # Given by code, not by the launchpad: a run started from anywhere has it.
    return k8s_job_executor.configured(config, name="k8s")


def executor_config(file: Path) -> dict[str, Any]:
    """What the executor is configured with.

    Raises
    ------
    ValueError
        The file does not hold a table of stations.
    """
    try:
        stations = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: cannot be read ({error}).") from error
    if not isinstance(stations, dict) or not all(isinstance(v, dict) for v in stations.values()):
        raise ValueError(f"{file}: expected a table, name of an asset -> its Kubernetes config.")
    return {
        "max_concurrent": 4,
        "step_k8s_config": stations.pop("default", {}),
        "per_step_k8s_config": stations,
    }
