"""Stations of sources and SNIP: metadata, clip_features, snip_model, snip_features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snip_assets.engine import copies, keep_rule, shards
from snip_assets.engine.compress import compress_shard, device_of
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.given_model import given_model, take_model, usable
from snip_assets.engine.metadata import require_text_columns
from snip_assets.engine.model import load_model
from snip_assets.engine.progress import track
from snip_assets.engine.run import MODEL_SETTINGS, Run
from snip_assets.engine.sample import text_features
from snip_assets.engine.settings import LOCAL
from snip_assets.engine.shards import Shard
from snip_assets.engine.storage.files import (
    Manifest,
    checksum,
    manifest_path,
    read_manifest,
    seal,
    write_json,
)
from snip_assets.engine.storage.locks import lock, scratch
from snip_assets.engine.storage.parquet_source import parquet_file, read_whole
from snip_assets.engine.storage.remote_files import is_remote, remote_states
from snip_assets.engine.storage.working_copies import discard
from snip_assets.engine.train import train

from .base import Inputs, each, finish, source_state, upstream_inputs


def metadata_state(shard: Shard) -> dict[str, str]:
    """What the metadata of a shard is read from, as it lies there.

    Headers are not read: where an output was made from this very state, they are as registered.
    """
    return {"source": source_state(shard.metadata)}


def features_state(shard: Shard) -> dict[str, str]:
    """What the hashes of a shard are made from; see `metadata_state`."""
    return {"source": source_state(shard.features)}


def metadata_inputs(shard: Shard) -> dict[str, str]:
    """The same, of a shard that is what was registered; raises BadInputError if it is not."""
    shards.changed(shard)
    return metadata_state(shard)


def features_inputs(shard: Shard) -> dict[str, str]:
    """The same, of a shard that is what was registered; raises BadInputError if it is not."""
    shards.changed(shard)
    return features_state(shard)


def model_inputs(run: Run) -> dict[str, str]:
    """What the net is made from; not the shards, on purpose."""
    given = given_model(run)
    file = {} if given is None else {"file": checksum(given)}
    return {"settings": run.digest(MODEL_SETTINGS), **file}


def compressed_inputs(run: Run) -> Inputs:
    """What the SNIP features of a shard are made from."""
    return upstream_inputs(run, "snip_model", "clip_features")


def require_named(run: Run) -> None:
    """Raise unless the net, the columns and the device that the settings name are there."""
    if given := given_model(run):
        usable(run, given)
    if run.settings.compute == LOCAL:
        device_of(run.settings)
    _checked_rule(run)


def _checked_rule(run: Run) -> keep_rule.Rule:
    """The keep rule, which fits the first shard: others may have been checked for another rule."""
    rule = keep_rule.parse(run.settings.keep)
    keep_rule.check(rule, run.registry.shards[0].metadata)
    return rule


def metadata(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Check the metadata shards, also for the keep rule, and note their columns."""
    rule = _checked_rule(run)

    def work(shard: Shard, output: Path) -> dict[str, Any]:
        with parquet_file(shard.metadata) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
        require_text_columns(shard.metadata, schema)
        keep_rule.check(rule, shard.metadata)
        facts = {"rows": rows, "columns": {f.name: str(f.type) for f in schema}}
        write_json(output, facts)
        return {**facts, "bytes": int(source_state(shard.metadata).partition("-")[0])}

    return each(run, keys, run.layout.metadata, metadata_inputs, work, alone=False)


def read_metadata(run: Run, keys: list[str] | None = None) -> None:
    """Read metadata shards whole (None: all); BadInputError names a damaged one."""
    wanted = run.registry.only(keys or run.registry.keys)
    for shard in track(wanted, "read metadata", len(wanted)):
        read_whole(shard.metadata)


def clip_features(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Check every row of the feature shards and hash it."""

    return each(
        run,
        keys,
        run.layout.clip_features,
        features_inputs,
        lambda shard, output: copies.hash_shard(shard.features, output, run.settings.workers),
    )


def replaced(run: Run, keys: list[str]) -> dict[str, str]:
    """Shards whose features hold other rows than when they were hashed, and what to do.

    Read are only files whose size or time has changed since; where one holds the same rows, its new
    state goes into its manifest, so it is not read again. Files that cannot be read are left to
    `clip_features` to refuse; urls whose listing tells no state are not looked at.

    Returns
    -------
    Key -> what is wrong with its features, and the cure.
    """
    found: dict[str, str] = {}
    states = source_states(run, keys)
    for shard in run.registry.only(keys):
        output, state = run.layout.clip_features(shard.key), states.get(shard.key)
        former = read_manifest(output)
        try:
            if former is None or state is None or former.inputs.get("source") == state:
                continue
            shards.changed(shard)
            with scratch(output) as folder:
                hashes = folder / output.name
                copies.hash_shard(shard.features, hashes, run.settings.workers)
                same = checksum(hashes) == former.files[output.name]["xxh3"]
        except BadInputError:
            continue
        if same:
            with lock(output):
                if read_manifest(output) != former:  # made anew by another run meanwhile
                    continue
                seal(output, {**former.inputs, "source": state}, **former.facts)
        else:
            found[shard.key] = (
                f"{shard.features}: has other rows than when shard {shard.key} was read; its pairs "
                "and those of later shards are of the former ones. Put the former file back (with "
                "its time), and give the new data a new key. `snip dedup`, or the job `arrival` "
                "over all shards, takes it as it is now and makes them again."
            )
    return found


@contextmanager
def unchanged(run: Run, keys: list[str]) -> Iterator[None]:
    """Raise BadInputError if shards have other raw rows than were hashed, before or after."""
    _refuse_replaced(run, keys)
    yield
    _refuse_replaced(run, keys)


def _refuse_replaced(run: Run, keys: list[str]) -> None:
    if others := replaced(run, keys):
        raise BadInputError(next(iter(others.values())))


def source_states(run: Run, keys: list[str]) -> dict[str, str | None]:
    """Key -> state of its features file; none where it cannot be read, or a listing does not tell.

    Files behind a url are listed once, not asked for one by one.
    """
    wanted, folder = run.registry.only(keys), run.registry.source.features
    if is_remote(folder):
        listed = dict(remote_states(folder, lambda _: True))
        return {shard.key: listed.get(shard.features.name) for shard in wanted}
    found: dict[str, str | None] = {}
    for shard in wanted:
        # The station that reads the file raises this again.
        with suppress(BadInputError):
            found[shard.key] = source_state(shard.features)
    return found


def snip_model(run: Run, *, again: bool = False) -> Manifest:
    """Train the net on the shards now registered, or take over one; kept when shards arrive.

    Parameters
    ----------
    again
        Make it now, also when neither settings nor code have changed.
    """
    given = given_model(run)

    def work() -> dict[str, Any]:
        if given is not None:
            return take_model(run, given)
        # Rows that were never checked are not trained on.
        ready = tuple(run.hashed()) or run.registry.shards
        registry = shards.Registry(run.registry.source, ready)
        features, text = shards.raw_features(registry), text_features(registry)
        with unchanged(run, list(registry.keys)):
            return train(features, run.settings, run.layout.snip_model, text=text)

    return finish(run.layout.snip_model, model_inputs(run), work, again=again)


def snip_features(run: Run, keys: list[str]) -> dict[str, Manifest]:
    """Compress feature shards; those with other rows than were hashed are refused at the end."""
    inputs, refused = compressed_inputs(run), replaced(run, keys)
    net = load_model(run.layout.snip_model)
    good = [key for key in keys if key not in refused]
    made = each(
        run,
        good,
        run.layout.snip_features,
        inputs,
        lambda shard, output: compress_shard(net, shard.features, output, run.settings),
    )
    # Those that were exchanged meanwhile must not pass once the former file is back.
    for key in (exchanged := replaced(run, good)):
        discard(manifest_path(run.layout.snip_features(key)))
    if refused | exchanged:
        raise BadInputError(" ".join((refused | exchanged).values()))
    return made
