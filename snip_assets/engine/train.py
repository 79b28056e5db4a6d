"""Train the SNIP net: neighbours inside a batch as soft targets, distances of the near ones kept.

Of a batch, the softmax of the raw similarities of a row to all others says who its neighbours
are; the net learns to give the same softmax on the compressed side. A row itself is left out.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import progress, threads
from .compress import device_of
from .errors import BadInputError
from .files import atomic_path, digest_of
from .model import SnipNet, pca, save_model
from .settings import Settings
from .shards import Features

VALIDATION_ROWS = 4096
# With fewer true pairs among the validation rows, the closest ones stand in for them.
VALIDATION_PAIRS = 256
EVALUATIONS = 20
RECALL, PRECISION = 0.99, 0.97


@dataclass(frozen=True)
class Recipe:
    """How the net is trained beyond the settings; `benchmarks/training.py` compares these.

    Attributes
    ----------
    weight_decay
        Of AdamW.
    warm_up
        Share of the steps in which the learning rate rises; it falls by a cosine afterwards.
    text_weight
        Of the image-text term against the image-image term.
    """

    weight_decay: float = 0.01
    warm_up: float = 0.3
    text_weight: float = 0.5


def train(
    features: Features,
    settings: Settings,
    out: Path,
    *,
    text: Features | None = None,
    recipe: Recipe = Recipe(),
) -> dict[str, Any]:
    """Train a net on a sample of the features and save it.

    Interrupted, it goes on from `{out}.checkpoint` and ends with the same net. The net depends
    on data, settings and seed (and, in the last bits, on the processor). Memory: the sample
    (`settings.train_rows` rows in their own dtype, at most a quarter of `settings.memory_gb`)
    and about 200 MB.

    Parameters
    ----------
    features
        Raw features, float[N, D], no zero rows.
    out
        Folder for the net.
    text
        Text features of the same rows in the same space: a second term keeps the image-text
        similarities.

    Returns
    -------
    dict
        method (`net` or `pca`) and why, rows, dim, steps, curve (step, loss, recall, precision
        on the validation rows), validation (rows, pairs, distance), seconds.

    Raises
    ------
    BadInputError
        There are no rows, or a sampled row is zero, NaN or infinite.
    """
    started = time.perf_counter()
    rows = sample_rows(len(features), _most_rows(features, settings, text), settings.seed)
    images = read_rows(features, rows)
    texts = read_rows(text, rows) if text is not None else None
    info: dict[str, Any] = {
        "rows": len(rows),
        "rows_in_all": len(features),
        "dim_in": images.shape[1],
        "dim": settings.dim,
        "settings": asdict(settings),
        "recipe": asdict(recipe),
        "text": texts is not None,
    }
    if len(rows) < settings.pca_below:
        net = pca(images if texts is None else np.concatenate([images, texts]), settings.dim)
        info |= {
            "method": "pca",
            "why": f"{len(rows)} rows are fewer than pca_below = {settings.pca_below}",
            "steps": 0,
            "curve": [],
        }
        info["validation"] = _measure_pca(net, images, settings)
    else:
        trainer = Trainer(images, texts, settings, recipe, out.parent / f"{out.name}.checkpoint")
        net = trainer.run()
        info |= {"method": "net", "why": f"{len(rows)} rows", **trainer.info()}
        trainer.checkpoint.unlink(missing_ok=True)
    save_model(net, out, {k: v for k, v in info.items() if k != "seconds"})
    info["seconds"] = round(time.perf_counter() - started, 2)
    return info


def _most_rows(features: Features, settings: Settings, text: Features | None) -> int:
    if len(features) == 0:
        raise BadInputError("there are no rows to train on; register a shard with rows.")
    first = features.shard(int(np.flatnonzero(np.diff(features.offsets))[0]))
    size = first.shape[1] * first.dtype.itemsize * (1 if text is None else 2)
    return max(1, min(settings.train_rows, int(settings.memory_gb * 2**30 / 4) // size))


def sample_rows(rows: int, most: int, seed: int) -> np.ndarray:
    """At most `most` row ids of 0 .. rows-1, int64, ascending, drawn without replacement."""
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.choice(rows, most, replace=False, shuffle=False)).astype(np.int64)


def read_rows(features: Features, rows: np.ndarray) -> np.ndarray:
    """Sampled rows, in their own dtype.

    Raises
    ------
    BadInputError
        One is zero, NaN or infinite: the message names file and row.
    """
    taken = features.take(rows)
    for start in range(0, len(taken), 8192):
        lengths = np.linalg.norm(taken[start : start + 8192].astype(np.float32), axis=1)
        if (bad := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))).size:
            row = int(rows[start + bad[0]])
            shard = int(np.searchsorted(features.offsets, row, "right") - 1)
            what = "is all zeros" if lengths[bad[0]] == 0 else "holds NaN or infinity"
            raise BadInputError(
                f"{features.paths[shard]}: row {row - int(features.offsets[shard])} {what}; "
                "compute its feature again, or take the row out of features and metadata."
            )
    return taken


class Validation:
    """True near neighbours among held-out rows, and how well a net finds them.

    Parameters
    ----------
    rows
        float[v, D].
    max_distance
        Raw distance below which two rows are a true pair. With fewer than 256 such pairs the
        256 closest pairs are the true ones.
    """

    def __init__(self, rows: np.ndarray, max_distance: float, device: torch.device) -> None:
        self.rows, self.device = rows, device
        raw = self._distances(nn.functional.normalize(torch.from_numpy(rows).float(), dim=1))
        self.distance = max_distance
        wanted = min(VALIDATION_PAIRS, len(raw))
        if wanted and int((raw < max_distance).sum()) < wanted:
            self.distance = float(np.partition(raw, wanted - 1)[wanted - 1])
            self.distance = max(max_distance, float(np.nextafter(np.float32(self.distance), 9)))
        self.true = raw < self.distance

    def _distances(self, unit: torch.Tensor) -> np.ndarray:
        """float32[v * (v - 1) / 2]: squared distances of all pairs."""
        unit, parts = unit.to(self.device), []
        for start in range(0, len(unit), 1024):
            block = 2 - 2 * (unit[start : start + 1024] @ unit[start:].T)
            keep = torch.ones_like(block, dtype=torch.bool).triu(1)
            parts.append(block[keep].cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    @torch.inference_mode()
    def measure(self, net: SnipNet) -> dict[str, float]:
        """Precision at recall 0.99 and recall at precision 0.97 of pairs by compressed distance."""
        if not self.true.any():
            return {"precision": 0.0, "recall": 0.0}
        rows = torch.from_numpy(self.rows).to(self.device)
        distances = self._distances(net(rows))
        hits = np.sort(distances[self.true])
        most = hits[min(len(hits) - 1, math.ceil(RECALL * len(hits)) - 1)]
        near = np.flatnonzero(distances <= most)
        order = near[np.argsort(distances[near], kind="stable")]
        found = np.cumsum(self.true[order])
        precision = found / np.arange(1, len(found) + 1)
        good = np.flatnonzero(precision >= PRECISION)
        recall = found[good[-1]] / len(hits) if good.size else 0.0
        return {"precision": float(precision[-1]), "recall": float(recall)}

    def facts(self) -> dict[str, Any]:
        """Size of the yardstick."""
        return {
            "rows": len(self.rows),
            "pairs": int(self.true.sum()),
            "distance": self.distance,
        }


def _measure_pca(net: SnipNet, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """A PCA has hardly anything to overfit: it is measured on the rows it was made from."""
    rows = images[sample_rows(len(images), VALIDATION_ROWS, settings.seed)]
    validation = Validation(rows, settings.max_distance, torch.device("cpu"))
    return {**validation.facts(), **validation.measure(net)}


class Trainer:
    """One training: batches, steps, evaluations, checkpoints.

    Everything random comes from (seed, epoch), so a checkpoint needs no state of a generator.
    """

    def __init__(
        self,
        images: np.ndarray,
        texts: np.ndarray | None,
        settings: Settings,
        recipe: Recipe,
        checkpoint: Path,
    ) -> None:
        self.settings, self.recipe, self.checkpoint = settings, recipe, checkpoint
        self.device = device_of(settings)
        order = np.random.default_rng([settings.seed, 2]).permutation(len(images))
        held = min(VALIDATION_ROWS, len(images) // 10)
        self.rows = np.sort(order[held:])
        self.images, self.texts = images, texts
        self.validation = Validation(
            images[np.sort(order[:held])], settings.max_distance, self.device
        )
        self.batch = min(settings.batch, len(self.rows))
        self.steps = settings.steps or default_steps(len(self.rows))
        self.every = max(1, self.steps // EVALUATIONS)
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.stopped = 0
        self.digest = digest_of([asdict(settings), asdict(recipe), _digest(images), self.steps])

    def info(self) -> dict[str, Any]:
        """What is worth keeping of a training."""
        return {
            "steps": self.stopped,
            "batch": self.batch,
            "curve": self.curve,
            "validation": {**self.validation.facts(), **max(self.curve, key=_score)},
        }

    def run(self) -> SnipNet:
        """Train to the end and return the net of the best evaluation."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads.count(self.settings.workers))
        try:
            return self._run()
        finally:
            torch.set_num_threads(before)

    def _run(self) -> SnipNet:
        net = self._start()
        optimiser = torch.optim.AdamW(
            net.parameters(), self.settings.learning_rate, weight_decay=self.recipe.weight_decay
        )
        first = self._resume(net, optimiser)
        losses: list[float] = []
        with progress.task("train", self.steps, "steps") as bar:
            bar.advance(first)
            for step in range(first, self.steps):
                losses.append(self._step(net, optimiser, step))
                bar.advance()
                if (step + 1) % self.every == 0 or step + 1 == self.steps:
                    self._evaluate(net, step + 1, float(np.mean(losses)))
                    losses = []
                    self._save(net, optimiser, step + 1)
                    if self._patience_is_over():
                        break
        self.stopped = int(self.curve[-1]["step"])
        net.load_state_dict(self.best)
        return net.cpu().eval().requires_grad_(False)

    def _start(self) -> SnipNet:
        hidden = [self.settings.hidden] * self.settings.depth
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            net = SnipNet([self.images.shape[1], *hidden, self.settings.dim])
        return net.to(self.device)

    def _batches(self, step: int) -> np.ndarray:
        """int64[batch]: the rows of a step; every row comes once in an epoch."""
        per_epoch = len(self.rows) // self.batch
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.settings.seed, 3, epoch]).permutation(len(self.rows))
        return self.rows[order[place * self.batch : (place + 1) * self.batch]]

    def _step(self, net: SnipNet, optimiser: torch.optim.Optimizer, step: int) -> float:
        for group in optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(step)
        chosen = self._batches(step)
        images = self._tensor(self.images, chosen)
        with self._precision():
            short = net(images)
            loss = neighbour_loss(images, short, self.settings.temperature)
            if self.texts is not None:
                texts = self._tensor(self.texts, chosen)
                pair = text_loss(images, texts, short, net(texts), self.settings.temperature)
                loss = loss + self.recipe.text_weight * pair
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def _tensor(self, rows: np.ndarray, chosen: np.ndarray) -> torch.Tensor:
        taken = torch.from_numpy(rows[chosen]).to(self.device)
        return nn.functional.normalize(taken.float(), dim=1)

    def _precision(self) -> torch.autocast:
        """bfloat16 products where the processor multiplies them fast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bf16(self.device))

    def _rate(self, step: int) -> float:
        rising = max(1, int(self.recipe.warm_up * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def _evaluate(self, net: SnipNet, step: int, loss: float) -> None:
        point = {"step": step, "loss": loss, **self.validation.measure(net)}
        if not self.curve or _score(point) > max(map(_score, self.curve)):
            self.best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
        self.curve.append(point)

    def _patience_is_over(self) -> bool:
        scores = [_score(point) for point in self.curve]
        return len(scores) - 1 - int(np.argmax(scores)) >= self.settings.patience

    def _save(self, net: SnipNet, optimiser: torch.optim.Optimizer, step: int) -> None:
        state = {
            "digest": self.digest,
            "step": step,
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "best": self.best,
            "curve": self.curve,
        }
        buffer = BytesIO()
        torch.save(state, buffer)
        with atomic_path(self.checkpoint) as temporary:
            temporary.write_bytes(buffer.getvalue())

    def _resume(self, net: SnipNet, optimiser: torch.optim.Optimizer) -> int:
        """Load the checkpoint if it is of this very training; return the step to go on with."""
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            if state["digest"] != self.digest:
                return 0
        except Exception:  # a missing or torn checkpoint only costs time
            return 0
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        self.best = {k: v.cpu() for k, v in state["best"].items()}
        self.curve = state["curve"]
        return self.steps if self._patience_is_over() else int(state["step"])


def _score(point: dict[str, float]) -> float:
    return point["precision"] + point["recall"]


def _digest(rows: np.ndarray) -> str:
    import xxhash

    return xxhash.xxh3_128(np.ascontiguousarray(rows).data).hexdigest()


def default_steps(rows: int) -> int:
    """Steps for a number of training rows: a minute on two cores at 40 thousand."""
    return int(np.clip(rows // 50, 400, 4000))


def neighbour_loss(raw: torch.Tensor, short: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the softmaxes of raw and compressed similarities.

    Parameters
    ----------
    raw, short
        float32[b, D] and float32[b, dim], unit length.
    temperature
        Of both softmaxes.
    """
    itself = torch.eye(len(raw), dtype=torch.bool, device=raw.device)
    with torch.no_grad():
        target = (raw @ raw.T).float().div_(temperature).masked_fill_(itself, -1e4).softmax(1)
    logits = (short @ short.T).float().div(temperature).masked_fill(itself, -1e4)
    return nn.functional.cross_entropy(logits, target)


def text_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    short_images: torch.Tensor,
    short_texts: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The same between images and texts, in both directions."""
    with torch.no_grad():
        raw = (images @ texts.T).float() / temperature
    short = (short_images @ short_texts.T).float() / temperature
    one = nn.functional.cross_entropy(short, raw.softmax(1))
    other = nn.functional.cross_entropy(short.T, raw.T.softmax(1))
    return (one + other) / 2


def fast_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    name = "_is_avx512_bf16_supported"
    cpu = getattr(torch, "cpu", None)
    return bool(getattr(cpu, name)()) if hasattr(cpu, name) else False
