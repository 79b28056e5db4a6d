"""The files in deploy/k8s without a cluster: what they name exists; the pod of a step."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from snip_assets import kubernetes
from snip_assets.definitions import build_defs, defs
from snip_assets.options import settings_options

FOLDER = Path(__file__).parents[2] / "deploy" / "k8s"
STATIONS = FOLDER / "stations.yaml"
OTHERS = {"SNIP_FEATURES", "SNIP_METADATA", "SNIP_OUT", "SNIP_SHARDS_PER_RUN", "SNIP_K8S_STATIONS"}


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def test_variables_exist_and_parse() -> None:
    values = _read("sources.yaml")["data"]
    options = {o.variable: o for o in settings_options()}
    assert set(values) <= set(options) | OTHERS
    for name, text in values.items():
        assert isinstance(text, str), f"{name}: Kubernetes takes text only"
        if name in options:
            options[name].type(text)


def test_values_name_what_is_there() -> None:
    values = _read("values.yaml")
    deployment = values["dagster-user-deployments"]["deployments"][0]
    flag, module = deployment["dagsterApiGrpcArgs"]
    assert flag == "-m"
    assert isinstance(importlib.import_module(module).defs, dg.Definitions)
    assert deployment["includeConfigInLaunchedRuns"]["enabled"]
    names = {mount["name"] for mount in deployment["volumeMounts"]}
    assert names == {volume["name"] for volume in deployment["volumes"]}
    claim = deployment["volumes"][0]["persistentVolumeClaim"]["claimName"]
    volume, settings = _read("volume.yaml"), _read("sources.yaml")
    assert claim == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert deployment["envConfigMaps"][0]["name"] == settings["metadata"]["name"]
    mounts = {mount["mountPath"] for mount in deployment["volumeMounts"]}
    for variable in ("SNIP_OUT", "SNIP_CACHE", "SNIP_K8S_STATIONS"):
        assert str(Path(settings["data"][variable]).parent) in mounts
    assert values["runLauncher"]["type"] == "K8sRunLauncher"


def test_stations_are_steps_of_a_run() -> None:
    steps = {node.name for node in defs.resolve_job_def("arrival").nodes}
    assert set(_read("stations.yaml")) - {"default"} <= steps
    assert kubernetes.executor({}) is dg.in_process_executor


def test_executor_takes_the_stations(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_k8s", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[k8s]'")
    from dagster._config import process_config
    from dagster_k8s import k8s_job_executor

    config = kubernetes.executor_config(STATIONS)
    result = process_config(
        {"config": k8s_job_executor.config_schema.as_field()}, {"config": config}
    )
    assert result.success, result.errors
    monkeypatch.setenv("SNIP_K8S_STATIONS", str(STATIONS))
    assert build_defs().executor.name == "k8s"


def test_pod_of_a_step() -> None:
    pytest.importorskip("dagster_k8s", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[k8s]'")
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        UserDefinedDagsterK8sConfig,
        construct_dagster_k8s_job,
    )

    config, values = kubernetes.executor_config(STATIONS), _read("values.yaml")
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    of_runs = {"pod_spec_config": launcher["podSpecConfig"]}
    whole = K8sContainerContext.create_from_config({"k8s": {"run_k8s_config": of_runs}}).merge(
        K8sContainerContext(
            run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config["step_k8s_config"])
        )
    )

    def pod(name: str) -> Any:
        own = UserDefinedDagsterK8sConfig.from_dict(config["per_step_k8s_config"].get(name, {}))
        merged = whole.merge(K8sContainerContext(run_k8s_config=own))
        job = construct_dagster_k8s_job(
            DagsterK8sJobConfig(job_image="snip", dagster_home="/opt/dagster"),
            ["dagster", "api", "execute_step"],
            f"dagster-step-{name.replace('_', '-')}",
            merged.run_k8s_config,
        )
        return job.to_dict()["spec"]

    for name in {"metadata", *config["per_step_k8s_config"]}:
        limits = pod(name)["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["memory"].endswith("Gi")
        on_gpu = "nvidia.com/gpu" in limits
        assert on_gpu == (name in ("snip_model", "snip_features"))
        selector = pod(name)["template"]["spec"]["node_selector"]
        assert bool(selector) == on_gpu
    assert pod("metadata")["ttl_seconds_after_finished"] == 86400
    # A new volume belongs to root: pods must own it with the group of the image's user.
    image = (FOLDER.parent / "Dockerfile").read_text()
    (group,) = re.findall(r"useradd --uid (\d+)", image)
    for name in ("metadata", "snip_model"):
        assert pod(name)["template"]["spec"]["security_context"]["fs_group"] == int(group)
    server = values["dagster-user-deployments"]["deployments"][0]
    assert server["podSecurityContext"] == {"fsGroup": int(group)}


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "stations.yaml"
    bad.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match=r"stations\.yaml: expected a table"):
        kubernetes.executor_config(bad)
    with pytest.raises(ValueError, match="cannot be read"):
        kubernetes.executor_config(tmp_path / "none.yaml")
