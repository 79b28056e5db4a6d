"""The SNIP net: a chain of Linear and GELU layers that shortens features; its files.

Our own nets are a folder of `model.safetensors` (weights) and `model.json` (how it was made).
Nets of others are read for their weights alone: nothing that a pickle asks for is executed
unless it is on the short list of torch classes below.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from .errors import BadInputError
from .storage.files import atomic_path, write_json

# Rows as short as 1e-15 are brought to unit length; torch takes those below 1e-12 for zeros.
LEAST_LENGTH = 1e-30

MODEL_VERSION = "1"
WEIGHTS, INFO = "model.safetensors", "model.json"
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
# What a whole-module pickle may name, besides tensors: classes whose construction and
# __setstate__ only fill attributes.
_ALLOWED: list[Any] = [
    *(nn.Sequential, nn.Linear, nn.GELU, nn.ReLU, nn.Identity, nn.Dropout),
    *(nn.Parameter, OrderedDict, set),
]
_WRAPPERS = ("state_dict", "model", "net", "weights")
_CURE = "fetch it again, or save the net's state_dict as .safetensors"


class SnipNet(nn.Module):
    """Shorten features: L2-normalise, Linear (and activation, Linear ...), L2-normalise.

    A PCA is the same net with a single Linear layer.

    Parameters
    ----------
    sizes
        Numbers of a row before, between and after the Linear layers, such as 768, 1024, 128.
    activation
        Between the Linear layers: `gelu` or `relu`.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "gelu") -> None:
        super().__init__()
        self.sizes, self.activation = tuple(sizes), activation
        chain: list[nn.Module] = []
        for before, after in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            chain += [nn.Linear(before, after), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*chain[:-1])

    @property
    def linears(self) -> list[nn.Linear]:
        """The Linear layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compress rows.

        Parameters
        ----------
        rows
            n x sizes[0], any floating dtype, any length but zero.

        Returns
        -------
        Tensor
            float32[n, sizes[-1]], unit length.
        """
        short = self.layers(nn.functional.normalize(rows.float(), dim=1, eps=LEAST_LENGTH))
        return nn.functional.normalize(short.float(), dim=1)


def save_model(net: SnipNet, folder: Path, info: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json` to a folder, atomically.

    Equal weights and info give equal bytes.

    Parameters
    ----------
    info
        Anything JSON can hold: settings, data, curves.
    """
    weights = {k: v.detach().cpu().float().contiguous() for k, v in net.state_dict().items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        data = to_safetensors(weights, metadata={"activation": net.activation})
        (temporary / WEIGHTS).write_bytes(data)
        architecture = {"sizes": list(net.sizes), "activation": net.activation}
        write_json(
            temporary / INFO,
            {**info, "architecture": architecture, "version": MODEL_VERSION},
        )


def load_model(path: Path) -> SnipNet:
    """Read a net, on the CPU, ready for use.

    Parameters
    ----------
    path
        A folder of ours, a `.safetensors` file, or a torch file (`.pth`, `.pt`) with a
        `state_dict` or, in the legacy way, a whole `nn.Sequential`. The sizes are read from the
        weights. A state_dict does not say what lies between its Linear layers: GELU is assumed.

    Raises
    ------
    BadInputError
        The file is missing, damaged or no net; a pickle names something that is not on the list
        of harmless classes (it is not executed); a layer is not Linear; the layers do not fit.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    _look_at(path)
    if path.suffix == ".safetensors":
        weights, activation = _read_safetensors(path)
    else:
        weights, activation = _read_torch(path)
    return _build(path, weights, activation)


def _look_at(path: Path) -> None:
    try:
        with open(path, "rb") as handle:
            head = handle.read(256)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file; train or fetch the net first.") from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error}).") from error
    if not head:
        raise BadInputError(f"{path}: the file is empty; fetch it again.")
    if head.lstrip()[:1] == b"<":
        raise BadInputError(
            f"{path}: an HTML or XML page, not a net (an error page saved by a download?); "
            "fetch it again."
        )


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
            activation = (file.metadata() or {}).get("activation", "gelu")
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInputError(f"{path}: no safetensors file ({error}); fetch it again.") from error
    if activation not in ACTIVATIONS:
        raise BadInputError(f"{path}: unknown activation {activation!r}.")
    return weights, activation


def _read_torch(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        # Of an odd pickle torch would ask to file an issue.
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BadInputError(
                f"{path}: this pickle asks for {found.group(1)}, which is not on the list of "
                "harmless torch classes; nothing was executed. Ask its author for the "
                "state_dict, saved as .safetensors."
            ) from error
        raise BadInputError(
            f"{path}: no torch file of plain weights (or a whole module written before torch "
            f"1.6); {_CURE}."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadInputError(f"{path}: damaged, or no torch file ({reason}); {_CURE}.") from error
    except (AttributeError, TypeError, IndexError) as error:
        raise BadInputError(f"{path}: a malformed pickle ({error}); {_CURE}.") from error
    if isinstance(value, nn.Module):
        return _module_weights(path, value)
    if isinstance(value, Mapping):
        for name in _WRAPPERS:
            if isinstance(value.get(name), Mapping):
                value = value[name]
                break
        if all(isinstance(v, torch.Tensor) for v in value.values()):
            return {str(k): v for k, v in value.items()}, "gelu"
    raise BadInputError(f"{path}: holds {type(value).__name__}, not the weights of a net; {_CURE}.")


def _module_weights(path: Path, module: nn.Module) -> tuple[dict[str, torch.Tensor], str]:
    """Weights and activation of an unpickled module; its forward is never called."""
    leaves = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
    used = {n for n, kind in ACTIVATIONS.items() for m in leaves if isinstance(m, kind)}
    wrong = {m.approximate for m in leaves if isinstance(m, nn.GELU)} - {"none"}
    if len(used) > 1 or wrong:
        names = sorted(used | wrong)
        raise BadInputError(f"{path}: activations {names}; expected GELU or ReLU throughout.")
    return module.state_dict(), used.pop() if used else "gelu"


def _build(path: Path, weights: Mapping[str, torch.Tensor], activation: str) -> SnipNet:
    """A SnipNet with these weights; its sizes are those of the weights."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in weights.items():
        name, _, kind = key.rpartition(".")
        if kind not in ("weight", "bias") or value.dim() != (2 if kind == "weight" else 1):
            raise BadInputError(
                f"{path}: {key!r} of shape {tuple(value.shape)} belongs to no Linear layer; only "
                "chains of Linear layers are read (fold batch-norm into them first)."
            )
        layers.setdefault(name, {})[kind] = value.float()
    names = sorted(layers, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    if not names or (len(names) > 1 and not all(re.search(r"\d", name) for name in names)):
        raise BadInputError(f"{path}: layers {names or 'none'}; expected numbered Linear layers.")
    sizes = [0]
    for name in names:
        matrix = layers[name].get("weight", torch.empty(0, 0))
        bias = layers[name].setdefault("bias", torch.zeros(len(matrix)))
        if not len(matrix) or len(bias) != len(matrix) or sizes[-1] not in (0, matrix.shape[1]):
            raise BadInputError(
                f"{path}: layer {name!r} of shape {tuple(matrix.shape)} does not fit the {sizes} "
                "before it."
            )
        if not all(torch.isfinite(tensor).all() for tensor in layers[name].values()):
            raise BadInputError(f"{path}: layer {name!r} holds NaN or infinity; train it again.")
        sizes = [*(sizes if sizes[0] else [matrix.shape[1]]), len(matrix)]
    net = SnipNet(sizes, activation)
    with torch.no_grad():
        for linear, name in zip(net.linears, names, strict=True):
            linear.weight.copy_(layers[name]["weight"])
            linear.bias.copy_(layers[name]["bias"])
    return net.eval().requires_grad_(False)


def pca(rows: np.ndarray, dim: int) -> SnipNet:
    """The PCA of rows as a net of one Linear layer.

    Parameters
    ----------
    rows
        float[n, D], n >= 1, no zero rows.
    dim
        Numbers kept. With fewer than `dim` directions in the data the rest are zeros.

    Notes
    -----
    The directions are those of the second moment about the origin, not about the mean, and the
    bias is zero: the lengths after projection then stay close to one, so that normalising the
    output keeps the distances.
    """
    size = rows.shape[1]
    moment = np.zeros((size, size))
    for start in range(0, len(rows), 4096):
        block = rows[start : start + 4096].astype(np.float64)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        moment += block.T @ block
    _, vectors = np.linalg.eigh(moment)
    kept = min(dim, size, len(rows))
    directions = np.zeros((dim, size), np.float32)
    directions[:kept] = vectors[:, ::-1][:, :kept].T
    # eigh leaves the sign open: largest entry positive, so that equal data give equal bytes.
    peak = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    directions *= np.where(peak < 0, -1, 1)
    net = SnipNet([size, dim])
    with torch.no_grad():
        net.linears[0].weight.copy_(torch.from_numpy(directions))
        net.linears[0].bias.zero_()
    return net.eval().requires_grad_(False)
