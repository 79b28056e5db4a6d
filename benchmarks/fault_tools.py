"""Stations in forked children that can be killed, limited and compared, for `faults.py`.

Children are forked from a parent that has only imported the engine: a station starts at once, and
no thread pool of the parent is copied.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snip_assets.engine import shards, stations
from snip_assets.engine.errors import SnipError
from snip_assets.engine.layout import STATIONS, WHOLE, Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage.files import manifest_path
from snip_assets.options import default_source


@dataclass(frozen=True)
class End:
    """How a child ended: 0 done, 1 a SnipError, 2 another error, -n killed by a signal."""

    code: int
    message: str
    seconds: float


class Child:
    """A function in a forked process.

    Parameters
    ----------
    work
        What to do; its SnipErrors and other errors come back as messages.
    limit
        Largest file that it may write, bytes; 0: any.
    """

    def __init__(self, work: Callable[[], object], limit: int = 0) -> None:
        self.started = time.monotonic()
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._read)
            _child(work, write, limit)
        os.close(write)

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        os.kill(self.pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether it has not ended."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is None

    def end(self) -> End:
        """Wait for it."""
        with os.fdopen(self._read, "rb") as pipe:
            message = pipe.read().decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return End(code, message, time.monotonic() - self.started)


def _child(work: Callable[[], object], pipe: int, limit: int) -> None:
    code, message = 0, ""
    try:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        result = work()
        message = json.dumps(result) if result is not None else ""
    except SnipError as error:
        code, message = 1, str(error)
    except BaseException:
        code, message = 2, traceback.format_exc()[-2000:]
    finally:
        data = message.encode(errors="replace")[:60_000]
        os.write(pipe, data)
        os._exit(code)


def station(root: Path, name: str, keys: list[str] | None = None, **settings: Any) -> None:
    """Run one station in this process."""
    run = stations.Run(Layout(root), Settings(**settings))
    work = getattr(stations, name)
    if name in WHOLE:
        work(run)
    else:
        work(run, keys or run.registry.keys)


def outputs(root: Path, name: str) -> list[Path]:
    """Places of a station's outputs."""
    layout = Layout(root)
    return layout.outputs(name, () if name in WHOLE else shards.load(layout).keys)


def remove(root: Path, name: str, *, manifest_only: bool = False) -> None:
    """Remove a station's outputs, or their manifests only."""
    for output in outputs(root, name):
        manifest_path(output).unlink(missing_ok=True)
        for inner in output.rglob("*.manifest.json") if output.is_dir() else ():
            inner.unlink()
        if output.is_dir() and not manifest_only:
            shutil.rmtree(output)
        elif not manifest_only:
            output.unlink(missing_ok=True)


def contents(root: Path, name: str) -> dict[str, bytes]:
    """Bytes of all files of a station's outputs; of manifests only what must be equal."""
    found: dict[str, bytes] = {}
    for output in outputs(root, name):
        files = sorted(output.rglob("*")) if output.is_dir() else [output]
        for file in (f for f in files if f.is_file()):
            if file.name.endswith(".manifest.json"):
                value = json.loads(file.read_text())
                found[str(file.relative_to(root))] = json.dumps(
                    [value["files"], value["inputs"]], sort_keys=True
                ).encode()
            else:
                found[str(file.relative_to(root))] = file.read_bytes()
        value = json.loads(manifest_path(output).read_text())
        value = [value["files"], value["inputs"]]
        found[f"manifest of {output.relative_to(root)}"] = json.dumps(value).encode()
    return found


def leftovers(root: Path) -> list[str]:
    """Temporaries and locks below a folder."""
    # `os.walk` takes it calmly when a folder is renamed meanwhile.
    walked = ((folder, [*folders, *files]) for folder, folders, files in os.walk(root))
    paths = (Path(folder, name) for folder, names in walked for name in names)
    return [str(path.relative_to(root)) for path in paths if path.name.startswith(".")]


def register(root: Path, source: Source | None = None) -> None:
    """Register all shards of a source (the sample)."""
    shards.register(Layout(root), source or default_source({}))


def copy_base(base: Path, to: Path, without: str | None = None) -> Path:
    """A copy of a finished output folder; from station `without` on there is nothing."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(base, to)
    if without is not None:
        for name in STATIONS[STATIONS.index(without) :]:
            remove(to, name)
    return to
