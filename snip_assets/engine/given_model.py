"""A net that was trained before, ours or a published one, in place of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contents import format_of
from .errors import BadInputError
from .model import SnipNet, load_model, save_model
from .remote_inputs import local_copy
from .run import Run
from .storage.files import MANIFEST
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
    # The one that was fetched last.
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name))


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
