"""Train the SNIP net on a sample of one's own features.

Of a batch, the softmax of the raw similarities of a row to all others says who its neighbours
are; the net learns to give the same softmax on the compressed side, and after the index's coding
(see `objective`). Batches are made of neighbourhoods, so that true near neighbours meet.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from . import choices, progress, threads
from .compress import device_of
from .errors import BadSettingsError
from .features import Features
from .kernels.fused_loss import Terms, fits, fused_loss
from .model import LEAST_LENGTH, SnipNet, pca, save_model
from .neighbourhoods import neighbourhoods
from .objective import (
    DEFAULT,
    Codes,
    Recipe,
    code_sample,
    near_loss,
    neighbour_loss,
    neighbour_target,
    text_loss,
)
from .sample import most_rows, read_rows, sample_rows
from .settings import Settings
from .storage.files import atomic_path, digest_of
from .validation import Validation

VALIDATION_ROWS = 4096
EVALUATIONS = 20
# Before this share of the steps the learning rate is still high and a halt says little.
EARLIEST_STOP = 0.6
# Scores that differ by less are equal: the later net is kept, and patience is not tried. They hang
# on some hundred pairs and differ by as much from one evaluation to the next; where training goes
# on without harm, the learning rate has fallen furthest at its end, and that net is the best.
TOLERANCE = 0.1
_VIEW_DIM = 64
_SETTINGS = (
    *("max_distance", "dim", "hidden", "depth", "temperature", "batch", "steps"),
    *("learning_rate", "patience", "train_rows", "pca_below", "seed"),
)


def train(
    features: Features,
    settings: Settings,
    out: Path,
    *,
    text: Features | None = None,
    recipe: Recipe = DEFAULT,
) -> dict[str, Any]:
    """Train a net on a sample of the features and save it.

    Interrupted, it goes on from `{out}.checkpoint` and ends with the same net. The net depends
    on data, settings and seed (in the last bits also on the processor and its threads). Memory:
    the sample (`settings.train_rows` rows in their own dtype, at most a quarter of
    `settings.memory_gb`) and about 200 MB.

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
        method (`net` or `pca`) and why (also whether memory allowed fewer rows than asked for),
        rows (trained on), rows_in_all, dim, steps, curve (step, loss, and what
        `Validation.measure` gives on the validation rows), validation (its rows, pairs and
        distance, and the scores of the net that was kept), seconds.

    Raises
    ------
    BadInputError
        There are no rows, or a sampled row is zero, NaN or infinite.
    """
    started = time.perf_counter()
    rows = sample_rows(len(features), most_rows(features, settings, text), settings.seed)
    images = read_rows(features, rows)
    texts = read_rows(text, rows) if text is not None else None
    info: dict[str, Any] = {
        "rows": len(rows),
        "rows_in_all": len(features),
        "dim_in": images.shape[1],
        "dim": settings.dim,
        "settings": {name: getattr(settings, name) for name in _SETTINGS},
        "recipe": asdict(recipe),
        "text": texts is not None,
    }
    checkpoint = out.parent / f"{out.name}.checkpoint"
    wanted = min(settings.train_rows, len(features))
    limit = f" (of {wanted:,}: memory_gb holds no more)" if len(rows) < wanted else ""
    if len(rows) < settings.pca_below:
        net = pca(images if texts is None else np.concatenate([images, texts]), settings.dim)
        few = f"{len(rows):,} rows{limit} are fewer than pca_below = {settings.pca_below:,}"
        info |= {"method": "pca", "why": few, "steps": 0, "curve": []}
        info["validation"] = _measure_pca(net, images, settings)
    else:
        trainer = Trainer(images, texts, settings, recipe, checkpoint)
        net = trainer.run()
        info |= {"method": "net", "why": f"trained on {len(rows):,} rows{limit}", **trainer.info()}
    save_model(net, out, {k: v for k, v in info.items() if k != "seconds"})
    checkpoint.unlink(missing_ok=True)
    info["seconds"] = round(time.perf_counter() - started, 2)
    return info


class Trainer:
    """One training: batches, steps, evaluations, checkpoints.

    Everything random comes from (seed, epoch), so a checkpoint needs no state of a generator.

    Parameters
    ----------
    images, texts
        float[n, D], the sample; texts may be None.
    checkpoint
        File, written at every evaluation.
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
        coded = recipe.code_weight > 0 and settings.dim % recipe.code_parts == 0
        self.codes = Codes(recipe.code_parts, recipe.code_lists) if coded else None
        self.batch = min(settings.batch, len(self.rows))
        self.steps = choices.steps(len(self.rows), settings)
        self.every = max(1, self.steps // EVALUATIONS)
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.epoch, self.order, self.view = -1, self.rows, np.empty((0, 0), np.float32)
        data = [_digest(rows) for rows in (images, texts) if rows is not None]
        used = {name: getattr(settings, name) for name in _SETTINGS}
        self.digest = digest_of([used, asdict(recipe), data, self.steps])

    def info(self) -> dict[str, Any]:
        """What is worth keeping of a training."""
        return {
            "steps": int(self.curve[-1]["step"]),
            "batch": self.batch,
            "curve": self.curve,
            "validation": {**self.validation.facts(), **self.curve[self._kept()]},
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
            net.parameters(),
            self.settings.learning_rate,
            weight_decay=self.recipe.weight_decay,
            fused=True,
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
                    if self._over():
                        break
        net.load_state_dict(self.best)
        return net.cpu().eval().requires_grad_(False)

    def _start(self) -> SnipNet:
        hidden = [self.settings.hidden] * self.settings.depth
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            net = SnipNet([self.images.shape[1], *hidden, self.settings.dim])
        return net.to(self.device)

    def _batch(self, step: int) -> np.ndarray:
        """int64[batch]: the rows of a step; a row comes at most once in an epoch."""
        epoch, place = divmod(step, len(self.rows) // self.batch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.settings.seed, 3, epoch])
            self.epoch, self.order = epoch, self.rows[self._shuffle(rng)]
        return self.order[place * self.batch : (place + 1) * self.batch]

    def _shuffle(self, rng: np.random.Generator) -> np.ndarray:
        size = self.recipe.neighbourhood
        if size <= 1:
            return rng.permutation(len(self.rows))
        if not len(self.view):
            self.view = self._view()
        cut = neighbourhoods(self.view, size, rng)
        return np.concatenate([cut[part] for part in rng.permutation(len(cut))])

    def _view(self) -> np.ndarray:
        """float32[n, 64]: the training rows, short enough to be cut anew every epoch."""
        few = self.rows[sample_rows(len(self.rows), 16_384, self.settings.seed)]
        net = pca(self.images[few], _VIEW_DIM)
        parts = (self.rows[s : s + 8192] for s in range(0, len(self.rows), 8192))
        return np.concatenate([net(torch.from_numpy(self.images[part])).numpy() for part in parts])

    def _step(self, net: SnipNet, optimiser: torch.optim.Optimizer, step: int) -> float:
        for group in optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(step)
        codes = self._codes_of(net, step)
        chosen = self._batch(step)
        images = self._tensor(self.images, chosen)
        short = self._short(net, images)
        loss = self._loss(images, short, codes)
        if self.texts is not None:
            texts = self._tensor(self.texts, chosen)
            both = (images, texts, short, self._short(net, texts))
            loss = loss + self.recipe.text_weight * text_loss(*both, self.settings.temperature)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def _loss(self, images: torch.Tensor, short: torch.Tensor, codes: Codes | None) -> torch.Tensor:
        recipe, temperature = self.recipe, self.settings.temperature
        if fits(len(images), self.device):
            fixed = None if codes is None else codes.decode(short.detach())
            weights = recipe.near_weight, recipe.near_distance, recipe.code_weight
            terms = Terms(temperature, *weights, recipe.code_temperature, recipe.commit_weight)
            return fused_loss(images, short, fixed, terms, bfloat16=fast_bf16(self.device))
        raw, similar = images @ images.T, short @ short.T
        target = neighbour_target(raw, temperature)
        loss = neighbour_loss(target, similar, temperature)
        if recipe.near_weight:
            loss = loss + recipe.near_weight * near_loss(raw, similar, recipe.near_distance)
        if codes is not None:
            wide = neighbour_target(raw, recipe.code_temperature)
            loss = loss + recipe.code_weight * codes.loss(
                wide, short, recipe.code_temperature, recipe.commit_weight
            )
        return loss

    def _codes_of(self, net: SnipNet, step: int) -> Codes | None:
        """The codes of a step, None while it is too early; trained anew when they are due."""
        if self.codes is None or step < int(self.recipe.code_from * self.steps):
            return None
        if not self.codes.ready or step % self.recipe.code_refresh == 0:
            chosen = code_sample(self.rows, self.settings.seed, step)
            parts = [chosen[s : s + 4096] for s in range(0, len(chosen), 4096)]
            with torch.no_grad():
                short = [self._short(net, self._tensor(self.images, part)) for part in parts]
            self.codes.fit(torch.cat(short), self.settings.seed)
        return self.codes

    def _tensor(self, rows: np.ndarray, chosen: np.ndarray) -> torch.Tensor:
        taken = torch.from_numpy(rows[chosen]).to(self.device)
        return nn.functional.normalize(taken.float(), dim=1, eps=LEAST_LENGTH)

    def _short(self, net: SnipNet, rows: torch.Tensor) -> torch.Tensor:
        """Compressed rows; the layers in bfloat16 where the processor multiplies it fast."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bf16(self.device)):
            return net(rows)

    def _rate(self, step: int) -> float:
        rising = max(1, int(self.recipe.warm_up * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def _evaluate(self, net: SnipNet, step: int, loss: float) -> None:
        finite = math.isfinite(loss) and all(p.isfinite().all() for p in net.parameters())
        decode = self.codes.decode if self.codes is not None and self.codes.ready else None
        found = self.validation.measure(net, decode) if finite else {"score": math.nan}
        if not math.isfinite(found["score"]):
            raise BadSettingsError(
                f"training came to no finite numbers by step {step}; choose a learning_rate below "
                f"{self.settings.learning_rate:g}."
            )
        point = {"step": step, "loss": loss, **found}
        self.curve.append(point)
        if self._kept() == len(self.curve) - 1:
            self.best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}

    def _kept(self) -> int:
        """The evaluation whose net is kept: the latest of the best."""
        scores = np.array([point["score"] for point in self.curve])
        return int(np.flatnonzero(scores >= scores.max() - TOLERANCE)[-1])

    def _over(self) -> bool:
        """Whether `patience` evaluations in a row brought nothing as good."""
        late = self.curve[-1]["step"] >= EARLIEST_STOP * self.steps
        return late and len(self.curve) - 1 - self._kept() >= self.settings.patience

    def _save(self, net: SnipNet, optimiser: torch.optim.Optimizer, step: int) -> None:
        state = {
            "digest": self.digest,
            "step": step,
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "codes": self.codes.state() if self.codes is not None else {},
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
        if self.codes is not None:
            self.codes.load(state["codes"])
        self.best = {k: v.cpu() for k, v in state["best"].items()}
        self.curve = state["curve"]
        return self.steps if self._over() else int(state["step"])


def _digest(rows: np.ndarray) -> str:
    return xxhash.xxh3_128(np.ascontiguousarray(rows).data).hexdigest()


def _measure_pca(net: SnipNet, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """A PCA has hardly anything to overfit: it is measured on the rows it was made from."""
    rows = images[sample_rows(len(images), VALIDATION_ROWS, settings.seed)]
    validation = Validation(rows, settings.max_distance, torch.device("cpu"))
    return {**validation.facts(), **validation.measure(net)}


def fast_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    name = "_is_avx512_bf16_supported"
    cpu = getattr(torch, "cpu", None)
    return bool(getattr(cpu, name)()) if hasattr(cpu, name) else False
