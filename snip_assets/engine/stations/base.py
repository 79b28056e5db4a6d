"""What the stations have in common: skip what is current, work under a lock, seal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from snip_assets.engine import choices, threads
from snip_assets.engine.cost import measured
from snip_assets.engine.errors import BadInputError, made_again
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.shards import Shard
from snip_assets.engine.storage.files import Manifest, current, read_manifest, seal
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.storage.remote_files import is_remote, remote_state

Work = Callable[[Shard, Path], dict[str, Any]]
Inputs = Callable[[Shard], dict[str, str]]


def finish(
    output: Path,
    inputs: dict[str, str],
    work: Callable[[], dict[str, Any]],
    *,
    again: bool = False,
    at_once: int = 1,
    now: Callable[[], dict[str, str]] | None = None,
) -> Manifest:
    """The manifest of an output; made now unless it is current, or always when asked `again`.

    Of outputs that are made at once, each counts a part of the seconds.

    Parameters
    ----------
    now
        Tells the inputs once more, after the work.

    Raises
    ------
    BadInputError
        They changed meanwhile.
    """
    if not again and (manifest := current(output, inputs)) is not None:
        return manifest
    with lock(output):
        # Another run may have made it while we waited.
        if not again and (manifest := current(output, inputs)) is not None:
            return manifest
        with measured() as cost:
            facts = work()
        if now is not None and now() != inputs:
            raise BadInputError(
                f"{output.name}: what it is made from was changed while it was read; run again "
                "when nobody writes there."
            )
        seconds = round(cost.seconds / at_once, 3)
        return seal(output, inputs, **{**cost.facts, "seconds": seconds, **facts})


def each(
    run: Run,
    keys: list[str],
    output_of: Callable[[str], Path],
    inputs: Inputs,
    work: Work,
    *,
    alone: bool = True,
) -> dict[str, Manifest]:
    """Work shard by shard; a bad shard is refused at the end, after the good ones are done.

    Parameters
    ----------
    output_of
        Where the output of a shard lies, by key.
    inputs
        What it is made from: name -> version.
    work
        Makes it of a shard, at that place; returns facts for the manifest.
    alone
        A shard takes all cores, and the next one begins as it ends; otherwise one core, and some
        shards are worked on side by side.

    Returns
    -------
    Key -> manifest, by ordinal.

    Raises
    ------
    BadInputError
        Of a bad shard, or one for all of them.
    """
    shards = run.registry.only(keys)
    workers = run.settings.workers
    at_once = threads.AT_ONCE if alone else min(threads.count(workers), choices.SIDE_BY_SIDE)

    def one(shard: Shard) -> Manifest | BadInputError:
        output = output_of(shard.key)
        try:
            own, now = partial(work, shard, output), partial(inputs, shard)
            return finish(output, now(), own, at_once=min(at_once, len(shards)), now=now)
        except BadInputError as error:
            return error

    if alone:
        found = threads.overlapped(one, shards, workers)
    else:
        found = threads.ordered_map(one, shards, at_once)
    result: dict[str, Manifest] = {}
    refused: list[BadInputError] = []
    for shard, made in zip(shards, found, strict=True):
        if isinstance(made, Manifest):
            result[shard.key] = made
        else:
            refused.append(made)
    if len(refused) > 1:
        first = " ".join(str(error) for error in refused[:5])
        raise BadInputError(f"{len(refused)} shards refused, {len(result)} done. {first}")
    if refused:
        raise refused[0]
    return result


def upstream_inputs(run: Run, trained: str, station: str) -> Inputs:
    """What a shard's output is made from: what was trained, and an earlier output of the shard."""
    version = run.version(trained)

    def inputs(shard: Shard) -> dict[str, str]:
        # It is opened once for all shards.
        require_same(run.layout, trained, version)
        return {trained: version, station: run.version(station, shard.key)}

    return inputs


def require_same(layout: Layout, station: str, version: str) -> None:
    """Raise BadInputError if the output of a station, that was opened, was made again since."""
    now = read_manifest(layout.output(station))
    if now is None or now.version != version:
        raise made_again(f"{station}:", "read")


def source_state(path: Path) -> str:
    """Changes when a source file does, without reading it."""
    if is_remote(path):
        return remote_state(path)
    try:
        status = path.stat()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); put it back.") from error
    return f"{status.st_size}-{status.st_mtime_ns}"
