"""What a run has still to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from snip_assets.engine.errors import SnipError
from snip_assets.engine.run import Run
from snip_assets.engine.shards import Shard
from snip_assets.engine.storage.files import current
from snip_assets.engine.threads import ordered_map

from .base import Inputs
from .duplicates import pair_inputs
from .features import compressed_inputs, features_state, metadata_state, model_inputs
from .index import encoded_inputs, index_inputs


def unfinished(run: Run) -> list[str]:
    """Shards of which an output, up to their pairs, is missing or made from something else.

    Those after one whose rows are to be read or encoded again too: their pairs are with its rows.
    All shards where net or index are to be made. Told from manifests; with the setting `check` at
    `full` what an output is made from is compared with its checksums, once in a process.
    """
    layout = run.layout
    try:
        model = current(layout.snip_model, model_inputs(run))
        if model is None or current(layout.trained_index, index_inputs(run)) is None:
            return run.registry.keys
        pairs = pair_inputs(run)
        outputs: list[tuple[Callable[[str], Path], Inputs]] = [
            (layout.clip_features, features_state),
            (layout.snip_features, compressed_inputs(run)),
            (layout.index_shards, encoded_inputs(run)),
        ]
    except SnipError:
        # The station raises this again when it runs, and names its shard.
        return run.registry.keys

    def made(shard: Shard, some: Sequence[tuple[Callable[[str], Path], Inputs]]) -> bool:
        try:
            return all(current(output_of(shard.key), inputs(shard)) for output_of, inputs in some)
        except SnipError:
            return False

    shards, workers = run.registry.shards, run.settings.workers
    encoded = [*ordered_map(lambda shard: made(shard, outputs), shards, workers)]
    first = encoded.index(False) if False in encoded else len(shards)
    rest = [
        (layout.metadata, metadata_state),
        (layout.duplicate_pairs, lambda shard: pairs[shard.key]),
    ]
    done = ordered_map(lambda shard: made(shard, rest), shards[:first], workers)
    before = [s.key for s, whole in zip(shards[:first], done, strict=True) if not whole]
    return before + [s.key for s in shards[first:]]
