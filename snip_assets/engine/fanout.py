"""The shards of one station on several machines, through a Dask scheduler that already runs.

A task is the station itself, called for one shard (for some shards, where a station reads the whole
index once for all of them). Workers see the output folder and the source under the same paths or
urls as the caller; files are all that they share. Dask gives the shards of a lost worker to
another one, which skips what the lost one had finished.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from typing import Any

from . import remote_outputs
from .errors import BadInputError, SnipError, StaleOutputError
from .layout import Layout
from .progress import task
from .run import Run
from .settings import LOCAL, Settings
from .storage.files import CODE_VERSION, Manifest, checksum, digest_of

# Joins read the whole index once a task: as few as keep all workers busy to the end.
BATCHES_A_WORKER = {"duplicate_pairs": 2}
# Of a task that failed by an error that may pass; a lost worker counts apart (`allowed-failures`).
RETRIES = 2
SECONDS_TO_CONNECT = 20
# Dask waits for workers for ever, without a word.
SECONDS_WITHOUT_WORKERS = 300
SECONDS_BETWEEN_LOOKS = 10

Station = Callable[[Run, list[str]], dict[str, Manifest]]
# A station uses all cores of its machine, so a worker with many threads works on one at a time.
_one_at_a_time = threading.Lock()


class ComputeError(SnipError):
    """The machines that should do the work cannot."""

    exit_code = 5


def fan_out(station: Station, run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Call a station for these shards, where the setting `compute` says.

    Parameters
    ----------
    station
        A function of `stations` that takes keys, and for which a shard does not wait for another.
    run
        With `settings.compute`: `local`, or the address of a Dask scheduler.

    Returns
    -------
    As the station does: key -> manifest, by ordinal. The files are those that `local` writes.

    Raises
    ------
    ComputeError
        No scheduler or no worker answers (any more), workers see other files than we, or die of a
        shard.
    SnipError
        What the station raised on a worker. Bad shards are refused after the good ones are done.
    """
    if run.settings.compute == LOCAL:
        return station(run, keys)
    wanted = [shard.key for shard in run.registry.only(keys)]
    name = station.__name__
    # What workers read must be where they see it.
    remote_outputs.send(run.layout.root)
    root = remote_outputs.address(run.layout.root.resolve())
    here = {"root": root, "registry": checksum(run.layout.registry), "code": _code()}
    settings = asdict(replace(run.settings, compute=LOCAL))
    with _client(run.settings.compute) as client, task(name, len(wanted), "shards") as bar:
        batches = _batches(name, wanted, len(client.scheduler_info(n_workers=-1)["workers"]))
        # The name of a key up to its last part is the kind of task on Dask's pages.
        unique = uuid.uuid4().hex
        futures = {
            client.submit(
                _work, name, here, settings, batch, retries=RETRIES, key=(f"{name}-{unique}", n)
            ): batch
            for n, batch in enumerate(batches)
        }
        found = list(_results(client, futures, bar.advance))
    remote_outputs.refresh(run.layout.root)
    return _judge(found, wanted)


def _batches(name: str, keys: list[str], workers: int) -> list[list[str]]:
    """What each task does; interleaved, since a later shard has more earlier rows."""
    number = min(len(keys), BATCHES_A_WORKER.get(name, len(keys)) * max(workers, 1))
    return [keys[n::number] for n in range(number)]


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ComputeError(
            f"compute {address}: Dask is not installed; pip install 'snip_assets[dask]'."
        ) from error
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ComputeError(
            f"compute {address}: no Dask scheduler answers there ({error}); start one "
            "(`dask scheduler`) or give another address, as in tcp://host:8786."
        ) from error
    # When we close it, our tasks that wait are dropped; what is under way ends on its own.
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
        except TimeoutError as error:
            raise ComputeError(f"compute {address}: {_no_worker(client)}") from error
        yield client


def _no_worker(client: Any) -> str:
    """Why nobody works."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if limits := [w["memory_limit"] for w in workers if w["status"] == "paused"]:
        return (
            "Dask has paused its workers, whose memory is near their limit "
            f"({min(limits) / 1e9:.1f} GB); start them with `--memory-limit 0` (SNIP_MEMORY_GB "
            "bounds a station), or with more."
        )
    return (
        "the scheduler has no workers; start some (`dask worker "
        f"{client.scheduler.address} --nthreads 1`). Have they ended, or do they lack snip_assets? "
        "Their logs tell."
    )


def _results(
    client: Any, futures: dict[Any, list[str]], advance: Callable[[int], None]
) -> Iterator[dict[str, Manifest] | SnipError]:
    from distributed import CancelledError, KilledWorker

    for future in _finished(client, futures):
        keys = futures[future]
        try:
            yield future.result()
        except CancelledError as error:
            raise ComputeError(
                f"shard {keys[0]}: its task was cancelled; the scheduler has ended, was restarted, "
                f"or cannot be reached any more. Run again; what is done is skipped. ({error})"
            ) from error
        except KilledWorker as error:
            raise ComputeError(
                f"shard {keys[0]} ({len(keys)} in the task): its worker died, several times over. "
                f"Out of memory? Set memory_gb below what a worker has. ({error})"
            ) from error
        except (ImportError, AttributeError, RuntimeError) as error:
            # So says a scheduler that cannot import the task; other faults are ours.
            if isinstance(error, RuntimeError) and "task graph" not in str(error):
                raise
            raise ComputeError(
                f"the scheduler or a worker cannot run the task ({error}); install the same "
                "version of snip_assets on all machines, that of the scheduler too."
            ) from error
        advance(len(keys))


def _finished(client: Any, futures: Collection[Any]) -> Iterator[Any]:
    """Futures as they finish, as long as somebody works."""
    left, looked = set(futures), time.monotonic()
    worked = looked
    while left:
        yield from (done := {future for future in left if future.done()})
        left -= done
        now = time.monotonic()
        if done or now - looked < SECONDS_BETWEEN_LOOKS:
            time.sleep(0.02)
            continue
        looked = now
        # Where the scheduler cannot be reached, the futures will be cancelled.
        with suppress(OSError):
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            if any(worker["status"] == "running" for worker in workers):
                worked = now
            elif now - worked >= SECONDS_WITHOUT_WORKERS:
                raise ComputeError(f"{len(left)} tasks wait: {_no_worker(client)}")


def _judge(found: list[dict[str, Manifest] | SnipError], wanted: list[str]) -> dict[str, Manifest]:
    """Manifests by ordinal; else the errors of all tasks, as one run of the station has them."""
    errors = sorted((e for e in found if isinstance(e, SnipError)), key=str)
    if stopped := [e for e in errors if not isinstance(e, BadInputError)]:
        raise stopped[0]
    made: dict[str, Manifest] = {}
    for part in found:
        if not isinstance(part, SnipError):
            made |= part
    if len(errors) > 1:
        first = " ".join(str(error) for error in errors[:5])
        raise BadInputError(f"{len(errors)} shards refused, {len(made)} done. {first}")
    if errors:
        raise errors[0]
    return {key: made[key] for key in wanted if key in made}


def _work(
    name: str, here: dict[str, str], settings: dict[str, Any], keys: list[str]
) -> dict[str, Manifest] | SnipError:
    """On a worker: the station for some shards. What the user must mend is not tried again."""
    from . import stations

    station: Station = getattr(stations, name)
    with _one_at_a_time:
        try:
            layout = Layout(remote_outputs.folder(here["root"]))
            remote_outputs.refresh(layout.root)
            _same_files(layout, here)
            made = station(Run(layout, Settings(**settings)), keys)
            remote_outputs.send(layout.root)
            return made
        except SnipError as error:
            logging.getLogger(__name__).warning("%s %s: %s", name, ", ".join(keys), error)
            return error


def _code() -> str:
    """Changes with the outputs that a station makes, and with the settings that it takes."""
    return digest_of([CODE_VERSION, [f.name for f in fields(Settings)]])


def _same_files(layout: Layout, here: dict[str, str]) -> None:
    host = socket.gethostname()
    if here["code"] != _code():
        raise ComputeError(
            f"the worker on {host} runs another version of snip_assets; install the same one on "
            "all machines."
        )
    try:
        same = checksum(layout.registry) == here["registry"]
    except FileNotFoundError:
        same = False
    if not same:
        raise StaleOutputError(
            f"the worker on {host} does not see the output folder {layout} as it is here; "
            "give a url, or put it on storage that all machines mount under this path."
        )
