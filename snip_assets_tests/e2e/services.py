"""Dagster's daemon and webserver as processes of their own, and its GraphQL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Services:
    """Daemon and webserver over one output folder.

    Parameters
    ----------
    variables
        SNIP_* and DAGSTER_HOME.
    folder
        For logs.
    """

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "SNIP"))}
        self.variables = {**clean, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **variables}
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start `daemon` or `webserver`."""
        module = ["-m", "snip_assets.definitions"]
        command = {
            "daemon": ["-m", "dagster._daemon", "run", *module],
            "webserver": [
                *("-m", "dagster_webserver", *module),
                *("-h", "127.0.0.1", "-p", str(self.port), "--live-data-poll-rate", "10000"),
            ],
        }[name]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> int:
        """SIGKILL a service with all that it started: code server, runs. Returns how many."""
        process = psutil.Process(self.processes.pop(name).pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)
        return len(family)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def query(self, text: str, **variables: Any) -> Any:
        """GraphQL; raises on errors."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            value = json.loads(answer.read())
        if value.get("errors"):
            raise RuntimeError(str(value["errors"])[:2000])
        return value["data"]

    def wait_ready(self, seconds: float = 300) -> None:
        """Until the webserver has loaded the definitions."""

        def ready() -> bool:
            try:
                found = self.query(
                    "{repositoriesOrError{... on RepositoryConnection{nodes{name}}}}"
                )
            except OSError:
                return False
            return bool(found["repositoriesOrError"].get("nodes"))

        wait(ready, "webserver", seconds)

    def selector(self, **more: str) -> dict[str, str]:
        found = self.query(
            "{repositoriesOrError{... on RepositoryConnection{nodes{name location{name}}}}}"
        )["repositoriesOrError"]["nodes"][0]
        names = {
            "repositoryName": found["name"],
            "repositoryLocationName": found["location"]["name"],
        }
        return {**names, **more}

    def start_sensor(self, name: str) -> None:
        """As the switch in the UI does."""
        found = self.query(
            "mutation($s:SensorSelector!){startSensor(sensorSelector:$s){__typename "
            "... on Sensor{sensorState{status}} ... on PythonError{message}}}",
            s=self.selector(sensorName=name),
        )["startSensor"]
        if found["__typename"] != "Sensor":
            raise RuntimeError(str(found))

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        """Runs, newest first: runId, jobName, status."""
        return self.query(
            "query($f:RunsFilter){runsOrError(filter:$f,limit:1000){... on Runs{results{"
            "runId jobName status tags{key value}}}}}",
            f=filters,
        )["runsOrError"]["results"]


def wait(happened: Callable[[], bool], what: str, seconds: float) -> float:
    """Seconds until something is so.

    Raises
    ------
    TimeoutError
        It is not so in time.
    """
    started = time.monotonic()
    while not happened():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(1)
    return time.monotonic() - started
