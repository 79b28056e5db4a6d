"""Object stores: real servers on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from upath import UPath


@contextmanager
def _serving(command: list[str], port: int) -> Iterator[None]:
    """A server as a process of its own, as long as it is needed."""
    server = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, server)
        yield
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The url of a bucket."""
    pytest.importorskip("s3fs", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[s3]'")
    pytest.importorskip("moto.server", reason="SKIPPED, NOT TESTED: pip install 'moto[server]'")
    port = _free_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, _serving(command, port):
        for name, value in variables.items():
            patch.setenv(name, value)
        UPath("s3://bucket").fs.mkdir("bucket")
        yield "s3://bucket"


@pytest.fixture(scope="session")
def gs() -> Iterator[str]:
    """The url of a bucket."""
    pytest.importorskip("gcsfs", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[gs]'")
    emulator = "gcp_storage_emulator"
    pytest.importorskip(emulator, reason=f"SKIPPED, NOT TESTED: pip install {emulator}")
    port = _free_port()
    place = ["--host", "127.0.0.1", "--port", str(port)]
    command = ["-m", emulator, "start", *place, "--in-memory", "--default-bucket", "bucket"]
    with pytest.MonkeyPatch.context() as patch, _serving(command, port):
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield "gs://bucket"


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """Of each object store in turn."""
    return request.getfixturevalue(request.param)


def _wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("no server")
