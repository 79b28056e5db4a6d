"""What the SNIP net is trained for: the terms of its loss.

Four terms, each against the raw features of a batch: who are the neighbours of a row, the same
when the index's codes stand in for the rows, the distances of near rows, and the neighbours
between images and texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
import torch
from torch import nn

from .codec import Words
from .kernels.registers import WORDS

_CODE_ROWS = 16_384
# What FAISS takes for a seed.
_MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Recipe:
    """How the net is trained beyond the settings; `benchmarks/training.py` compares these.

    Attributes
    ----------
    weight_decay
        Of AdamW.
    warm_up
        Share of the steps in which the learning rate rises; it falls by a cosine afterwards.
    neighbourhood
        Rows of a neighbourhood that come into a batch together; 1 for batches at random.
    code_weight
        Of the term on decoded codes; 0 for none.
    code_temperature
        Of the similarities in that term.
    commit_weight
        Of the squared error of the codes, which draws rows towards what stands for them.
    code_from
        Share of the steps after which that term starts.
    code_refresh
        Steps after which its centroids are trained anew.
    code_parts, code_lists
        Sub-quantisers and inverted lists that it supposes, whatever codec the index takes later:
        the net, and all that is made with it, stays when the codec changes.
    near_weight, near_distance
        Of the term that keeps the squared distance of pairs nearer than this.
    text_weight
        Of the image-text term.
    """

    weight_decay: float = 0.01
    warm_up: float = 0.3
    neighbourhood: int = 16
    code_weight: float = 2.0
    code_temperature: float = 0.5
    commit_weight: float = 0.36
    code_from: float = 0.1
    code_refresh: int = 60
    code_parts: int = 8
    code_lists: int = 256
    near_weight: float = 1.0
    near_distance: float = 0.3
    text_weight: float = 0.5


DEFAULT = Recipe()


def neighbour_target(raw: torch.Tensor, temperature: float) -> torch.Tensor:
    """Softmax of the raw similarities of each row to the others of the batch.

    Parameters
    ----------
    raw
        float32[b, b], similarities.

    Returns
    -------
    Tensor
        float32[b, b]; rows sum to one, zero on the diagonal.
    """
    return _without_itself(raw, temperature).softmax(1)


def neighbour_loss(target: torch.Tensor, short: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between `neighbour_target` and the softmax of other similarities."""
    return nn.functional.cross_entropy(_without_itself(short, temperature), target)


@lru_cache(1)
def _diagonal(rows: int, device: torch.device) -> torch.Tensor:
    """What leaves a row itself out; made once, not at each step."""
    return torch.diag(torch.full((rows,), -1e4, device=device))


def _without_itself(similar: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits, of which a softmax leaves a row itself out."""
    return torch.add(_diagonal(len(similar), similar.device), similar, alpha=1 / temperature)


def near_loss(raw: torch.Tensor, short: torch.Tensor, distance: float) -> torch.Tensor:
    """Mean squared error of the squared distances of near pairs, in units of `distance`.

    Near are the pairs below `distance` on either side, so that a far pair which the net moves
    together counts as well. Parameters are similarities of unit rows, float32[b, b].
    """
    least = 1 - distance / 2
    near = (torch.maximum(raw, short.detach()) > least).fill_diagonal_(False)
    # Few are: looked up, they cost less than a product of all.
    places = near.nonzero(as_tuple=True)
    error = 2 * (short[places] - raw[places])
    return error.square().sum() / max(1, len(error)) / distance**2


def text_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    short_images: torch.Tensor,
    short_texts: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Cross-entropy of the image-text similarities, raw against compressed, both directions.

    Parameters are unit rows: float32[b, D] twice, float32[b, dim] twice.
    """
    with torch.no_grad():
        raw = (images @ texts.T).float() / temperature
    short = (short_images @ short_texts.T).float() / temperature
    one = nn.functional.cross_entropy(short, raw.softmax(1))
    other = nn.functional.cross_entropy(short.T, raw.T.softmax(1))
    return (one + other) / 2


class Codes:
    """The index as the net sees it in training: coarse centroids and product quantiser.

    The index is trained later, on the finished net; here stands one of the same form, trained
    anew from time to time on the net's own output, so that rows which are near come to share
    their codes and rows which are not do not.

    Parameters
    ----------
    parts
        Sub-quantisers.
    lists
        Inverted lists.
    """

    def __init__(self, parts: int, lists: int) -> None:
        self.parts, self.lists = parts, lists
        self.coarse = torch.empty(0)
        self.fine = torch.empty(0)
        # On the processor, where kernels find the nearest of 256.
        self._words: Words | None = None

    @property
    def ready(self) -> bool:
        """Whether there are centroids."""
        return len(self.coarse) > 0

    def fit(self, short: torch.Tensor, seed: int) -> None:
        """Train the centroids on compressed rows, float32[n, dim]."""
        rows = short.cpu().numpy()
        coarse = _kmeans(rows, min(self.lists, max(1, len(rows) // 40)), seed)
        _, lists = faiss.knn(rows, coarse, 1)
        residuals = (rows - coarse[lists[:, 0]]).reshape(len(rows), self.parts, -1)
        size = min(256, len(rows))
        fine = [_kmeans(residuals[:, part], size, seed + part) for part in range(self.parts)]
        state = {"coarse": torch.from_numpy(coarse), "fine": torch.from_numpy(np.stack(fine))}
        self.load({name: words.to(short.device) for name, words in state.items()})

    @torch.no_grad()
    def decode(self, short: torch.Tensor) -> torch.Tensor:
        """Encode rows and decode them again, float32[n, dim]."""
        scores = 2 * short @ self.coarse.T - self.coarse.square().sum(1)
        centroids = self.coarse[scores.argmax(1)]
        if self._words is not None:
            residuals = (short - centroids).numpy()
            origin = np.zeros(residuals.shape[1], np.float32)
            words = self._words.decode(self._words.encode(residuals), origin)
            return centroids + torch.from_numpy(words)
        residuals = (short - centroids).unflatten(1, (self.parts, -1)).transpose(0, 1)
        lengths = self.fine.square().sum(2)[:, None]
        distances = torch.baddbmm(lengths, residuals, self.fine.transpose(1, 2), alpha=-2)
        nearest = distances.argmin(2)
        decoded = torch.stack([self.fine[p][nearest[p]] for p in range(self.parts)], 1)
        return centroids + decoded.flatten(1)

    def loss(
        self, target: torch.Tensor, short: torch.Tensor, temperature: float, commit: float
    ) -> torch.Tensor:
        """`neighbour_loss` on the decoded rows, and `commit` times the squared coding error.

        The gradient passes the coding unchanged.
        """
        fixed = self.decode(short.detach())
        decoded = short + (fixed - short).detach()
        # Minus half of the squared distances, but for the row's own length, which says nothing
        # about which neighbour is nearer.
        nearness = decoded @ decoded.T - decoded.square().sum(1) / 2
        error = (short - fixed).square().sum(1).mean()
        return neighbour_loss(target, nearness, temperature) + commit * error

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {"coarse": self.coarse, "fine": self.fine}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """From a checkpoint."""
        self.coarse, self.fine = state["coarse"], state["fine"]
        known = self.ready and self.fine.device.type == "cpu" and self.fine.shape[1] == WORDS
        self._words = Words(self.fine.numpy()) if known else None


def _kmeans(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    model = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=4,
        seed=(seed + 1) & _MOST_SEED,
        min_points_per_centroid=1,
        verbose=False,
    )
    model.train(np.ascontiguousarray(rows, np.float32))
    return np.array(model.centroids, np.float32)


def code_sample(rows: np.ndarray, seed: int, step: int) -> np.ndarray:
    """The rows (of `rows`) on which the centroids of a step are trained, ascending."""
    rng = np.random.default_rng([seed, 7, step])
    return np.sort(rng.choice(rows, min(_CODE_ROWS, len(rows)), replace=False))
