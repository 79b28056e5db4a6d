"""Shards on the workers of a Dask scheduler, processes on loopback; one is killed in mid-run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import fanout, remote_outputs, stations
from snip_assets.engine.errors import BadInputError, StaleOutputError
from snip_assets.engine.fanout import ComputeError, fan_out
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.engine.storage import working_copies
from snip_assets.engine.storage.files import checksum
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA

SHARDS = 8
ORDER = [
    *("metadata", "clip_features", "snip_model", "snip_features", "trained_index"),
    *("index_shards", "snip_index", "duplicate_pairs", "duplicate_groups", "dup_bitmap"),
    *("deduped_metadata", "drop_list"),
]
WHOLE = {"snip_model", "trained_index", "snip_index", "duplicate_groups", "dup_bitmap"}


@dataclass
class Cluster:
    """A scheduler and two workers; the first one may be killed."""

    address: str
    processes: list[subprocess.Popen] = field(default_factory=list)

    def kill_with_work(self, killed: threading.Event) -> None:
        """Kill worker "0" while it has a task, and not before it has finished one."""
        from distributed import Client

        process = self.processes[1]
        with Client(self.address, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            name = next(a for a, w in workers.items() if str(w["name"]) == "0")
            while process.poll() is None:
                if client.processing()[name] and client.has_what()[name]:
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(0.2)
                    if client.processing()[name]:
                        process.kill()
                        killed.set()
                        return
                    process.send_signal(signal.SIGCONT)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip(
        "distributed", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[dask]'"
    )
    file = tmp_path / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common]
    worker = ["dask_worker", *common, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
    worker += ["--preload", "snip_assets.engine.stations"]
    commands = [scheduler, *([*worker, "--name", str(n)] for n in range(2))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *arguments],
            # Like machines that have no folder in common.
            env=os.environ | {"OMP_NUM_THREADS": "1", remote_outputs.PLACE: f"{tmp_path}/{n}"},
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for n, (name, *arguments) in enumerate(commands)
    ]
    try:
        address = _wait_for(file, processes)
        yield Cluster(address, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_for(file: Path, processes: list[subprocess.Popen]) -> str:
    from distributed import Client

    for _ in range(600):
        assert all(p.poll() is None for p in processes), "a process of the cluster has ended"
        with suppress(FileNotFoundError, ValueError):
            address = json.loads(file.read_text())["address"]
            break
        time.sleep(0.1)
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    return address


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """The sample in eight shards."""
    features = np.concatenate([np.load(p) for p in sorted(SAMPLE_FEATURES.glob("*.npy"))])
    table = pa.concat_tables(pq.read_table(p) for p in sorted(SAMPLE_METADATA.glob("*.parquet")))
    found = Source(tmp_path / "img_emb", tmp_path / "metadata")
    found.features.mkdir()
    found.metadata.mkdir()
    size = len(features) // SHARDS
    for n in range(SHARDS):
        np.save(found.features / f"img_emb_{n:04d}.npy", features[n * size : (n + 1) * size])
        pq.write_table(table.slice(n * size, size), found.metadata / f"metadata_{n:04d}.parquet")
    return found


def _digests(out: Path) -> dict[str, str]:
    """Every output but what holds seconds and settings: manifests and the report."""
    files = [p for p in sorted(out.rglob("*")) if p.is_file()]
    names = {p: str(p.relative_to(out)) for p in files}
    left_out = (".dagster", ".compared", "dedup_report", "train.json")
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if not name.startswith(left_out) and not name.endswith((".manifest.json", "model.json"))
    }


def _whole_pipeline(out: Path, source: Source, settings: Settings) -> None:
    register(Layout(out), source)
    run = Run(Layout(out), settings)
    for name in ORDER:
        station = getattr(stations, name)
        if name in WHOLE:
            station(run)
        else:
            assert list(fan_out(station, run, run.registry.keys)) == run.registry.keys


def test_a_killed_worker_and_the_same_bytes(
    cluster: Cluster, source: Source, tmp_path: Path
) -> None:
    here, there = tmp_path / "local", tmp_path / "dask"
    _whole_pipeline(here, source, Settings(check="size"))
    killed = threading.Event()
    killer = threading.Thread(target=cluster.kill_with_work, args=[killed], daemon=True)
    killer.start()
    _whole_pipeline(there, source, Settings(check="size", compute=cluster.address))
    killer.join(10)
    assert killed.is_set(), "the worker never had work to be killed with"
    expected = _digests(here)
    assert len(expected) > 6 * SHARDS
    assert _digests(there) == expected
    assert not list(there.rglob(".tmp-*"))


def test_workers_that_share_a_url_alone_make_the_same_bytes(
    cluster: Cluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote_outputs.PLACE, str(tmp_path / "caller"))
    monkeypatch.setattr(remote_outputs, "_open", {})
    monkeypatch.setattr(working_copies, "_open", {})
    _whole_pipeline(tmp_path / "local", source, Settings(check="size"))
    # A store that needs no server: fsspec's own, of local files.
    there = tmp_path / "store" / "run"
    there.parent.mkdir()
    out = remote_outputs.folder(f"local://{there}")
    killed = threading.Event()
    threading.Thread(target=cluster.kill_with_work, args=[killed], daemon=True).start()
    _whole_pipeline(out, source, Settings(check="size", compute=cluster.address))
    remote_outputs.send()
    assert killed.is_set(), "the worker never had work to be killed with"
    assert _digests(there) == _digests(tmp_path / "local")
    # The worker that was not killed had a folder of its own.
    assert len([*tmp_path.glob("2/outputs/run-*/clip_features/*.npy")]) > 1


def test_errors_come_back(cluster: Cluster, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    register(Layout(out), source)
    for number in (3, 7):
        path = source.features / f"img_emb_{number:04d}.npy"
        rows = np.load(path)
        rows[5] = np.nan
        np.save(path, rows)
    messages = []
    for compute in (cluster.address, "local"):
        run = Run(Layout(out), Settings(compute=compute))
        with pytest.raises(BadInputError, match="2 shards refused, 6 done") as caught:
            fan_out(stations.clip_features, run, run.registry.keys)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "img_emb_0003.npy: row 5" in messages[0]
    run = Run(Layout(out), Settings(compute=cluster.address))
    with pytest.raises(StaleOutputError, match="materialise snip_model first"):
        fan_out(stations.snip_features, run, run.registry.keys)


def _on(cluster: Cluster, source: Source, folder: Path) -> Run:
    register(Layout(folder / "out"), source)
    return Run(Layout(folder / "out"), Settings(compute=cluster.address))


def test_the_scheduler_dies(cluster: Cluster, source: Source, tmp_path: Path) -> None:
    scheduler, *workers = cluster.processes
    run = _on(cluster, source, tmp_path)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    threading.Timer(3, scheduler.kill).start()
    with pytest.raises(ComputeError, match="its task was cancelled; the scheduler has ended"):
        fan_out(stations.clip_features, run, run.registry.keys)


def test_all_workers_have_ended(
    cluster: Cluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snip_assets.engine.fanout.SECONDS_WITHOUT_WORKERS", 1)
    monkeypatch.setattr("snip_assets.engine.fanout.SECONDS_BETWEEN_LOOKS", 0.5)
    run = _on(cluster, source, tmp_path)
    for worker in cluster.processes[1:]:
        worker.send_signal(signal.SIGSTOP)
        threading.Timer(2, worker.kill).start()
    with pytest.raises(ComputeError, match="8 tasks wait: the scheduler has no workers"):
        fan_out(stations.clip_features, run, run.registry.keys)


def test_workers_that_dask_has_paused(
    cluster: Cluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    monkeypatch.setattr("snip_assets.engine.fanout.SECONDS_TO_CONNECT", 3)
    run = _on(cluster, source, tmp_path)

    def fill(dask_worker: Any) -> None:
        dask_worker.memory_manager.memory_limit = 1_000_000
        dask_worker.memory_manager.memory_terminate_fraction = False

    with Client(cluster.address, set_as_default=False) as client:
        client.run(fill)
        info: dict[str, Any] = {}
        while {w["status"] for w in info.get("workers", {}).values()} != {"paused"}:
            time.sleep(0.1)
            info = client.scheduler_info(n_workers=-1)
    with pytest.raises(ComputeError, match=r"Dask has paused its workers.*--memory-limit 0"):
        fan_out(stations.clip_features, run, run.registry.keys)


def test_a_worker_with_other_settings_is_of_another_version(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Layout(tmp_path / "out"), Settings())
    register(run.layout, source)
    here = {"root": str(run.layout.root), "registry": checksum(run.layout.registry)}
    there = {**here, "code": fanout._code()}
    monkeypatch.setattr(fanout, "fields", lambda _: fields(Settings)[:-1])
    found = fanout._work("clip_features", there, {"not_known_here": 1}, ["0000"])
    assert isinstance(found, ComputeError)
    assert "runs another version of snip_assets" in str(found)


@pytest.mark.parametrize("text", ["Error during deserialization of the task graph.", "a fault"])
def test_a_scheduler_without_the_code_is_named(text: str) -> None:
    pytest.importorskip(
        "distributed", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[dask]'"
    )

    def fail() -> None:
        raise RuntimeError(text)

    future = type("Future", (), {"done": lambda _: True, "result": lambda _: fail()})()
    expected = ComputeError if "graph" in text else RuntimeError
    with pytest.raises(expected, match=text):
        list(fanout._results(None, {future: ["0000"]}, lambda _: None))


def test_no_scheduler(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "distributed", reason="SKIPPED, NOT TESTED: pip install 'snip_assets[dask]'"
    )
    monkeypatch.setattr("snip_assets.engine.fanout.SECONDS_TO_CONNECT", 1)
    register(Layout(tmp_path / "out"), source)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        run = Run(Layout(tmp_path / "out"), Settings(compute=address))
        with pytest.raises(ComputeError, match="no Dask scheduler answers"):
            fan_out(stations.clip_features, run, run.registry.keys)


def test_dask_is_missing(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    register(Layout(tmp_path / "out"), source)
    run = Run(Layout(tmp_path / "out"), Settings(compute="tcp://127.0.0.1:8786"))
    with pytest.raises(ComputeError, match="pip install 'snip_assets"):
        fan_out(stations.clip_features, run, run.registry.keys)
