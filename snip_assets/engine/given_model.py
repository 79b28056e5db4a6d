"""A net that was trained before, ours or a published one, in place of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contents import format_of
from .errors import BadInputError
from .fetch import time_text
from .model import SnipNet, load_model, save_model
from .remote_inputs import local_copy
from .run import Run
from .storage.files import MANIFEST, read_manifest
from .storage.working_copies import here


def given_model(run: Run) -> Path | None:
    """The file that the settings name; None when the net is to be trained."""
    source = run.settings.model
    if source == "train":
        return None
    if source != "published":
        path = local_copy(source)
        if not path.is_file():
            raise BadInputError(
                f"model {source}: no such file; give `train`, `published` or a file."
            )
        return path
    folder = run.layout.published
    there = [path.name.removesuffix(MANIFEST) for path in folder.glob("*")]
    nets = {name for name in there if format_of(name) in ("torch", "safetensors")}
    found = [path for name in nets if here(path := folder / name).is_file()]
    if not found:
        raise BadInputError(
            f"{folder}: no published model; run `snip fetch model --out {folder}`, or materialise "
            "published_model."
        )
    return max(found, key=lambda path: (*_fetched(path), path.name))


def _fetched(path: Path) -> tuple[str, float]:
    """The greater, the later a net was fetched, or put there by hand: then it has no manifest.

    In a working copy the time of a file is that when it came to this machine; it decides among
    those alone whose manifest has no time, as versions before wrote it.
    """
    manifest, seen = read_manifest(path), path.stat().st_mtime
    return time_text(seen) if manifest is None else manifest.facts.get("fetched", ""), seen


def usable(run: Run, path: Path) -> SnipNet:
    """The net of a file, which fits the features of this run; its weights alone are read."""
    net = load_model(path)
    if net.sizes[0] != run.registry.dim:
        raise BadInputError(
            f"{path}: a net for features of {net.sizes[0]} numbers; the shards have "
            f"{run.registry.dim}. Use the net of the same CLIP model, or train one."
        )
    return net


def take_model(run: Run, path: Path) -> dict[str, Any]:
    """Take a net over into the output folder."""
    net = usable(run, path)
    facts = {"method": "file", "why": f"weights of {path.name}", "dim": net.sizes[-1]}
    save_model(net, run.layout.snip_model, facts)
    return facts
