"""Take shards out of a data set again: those registered last, as row ids must not change."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import BadInputError
from .layout import Layout
from .shards import Registry, Shard, load, save
from .storage.files import manifest_path
from .storage.folders import remove
from .storage.locks import lock
from .storage.working_copies import discard


def withdrawable(layout: Layout, keys: Sequence[str]) -> list[Shard]:
    """The shards with these keys, if no other one was registered after the first of them.

    Raises
    ------
    BadInputError
        One was, a key is not registered, or no shard would be left.
    """
    registry = load(layout)
    gone = registry.only(list(keys))
    last = registry.shards[gone[0].ordinal :] if gone else ()
    if later := [s.key for s in last if s not in gone]:
        raise BadInputError(
            f"shard {gone[0].key}: shard {later[0]} was registered after it, and row ids must not "
            f"change. Withdraw all from it on ({' '.join(s.key for s in last)}), or begin in a new "
            "output folder."
        )
    if len(gone) == len(registry.shards):
        raise BadInputError(f"{layout}: no shard would be left; remove this folder instead.")
    return gone


def withdraw(layout: Layout, keys: Sequence[str]) -> list[Shard]:
    """Forget some shards, and remove what was made of each; sources are not touched.

    Groups and bitmap, which name rows that there are no more, go too; merged index and report are
    stale then; net and trained index stay.

    Returns
    -------
    The shards.

    Raises
    ------
    BadInputError
        See `withdrawable`.
    """
    with lock(layout.registry, layout.row_offsets):
        gone, registry = withdrawable(layout, keys), load(layout)
        of_shards = [output for shard in gone for output in layout.of_shard(shard.key)]
        # Before the shards are forgotten: stopped on the way, the same command goes on.
        for output in (layout.dup_bitmap, layout.duplicate_groups, *of_shards):
            if output.exists() or manifest_path(output).exists():
                with lock(output):
                    # Without it an output counts as unfinished.
                    discard(manifest_path(output))
                    remove(output)
        save(layout, Registry(registry.source, tuple(s for s in registry.shards if s not in gone)))
    return gone
