"""Ways to train the SNIP net, side by side in one run.

python benchmarks/training.py --data FOLDER [--steps 600] [--only NAME ...]

The nets are trained on all shards but the last. Measured are the pairs that have a row in the
last shard: true is a raw distance below 0.1, found is a distance below a threshold, by SNIP
features or by nothing but the decoded PQ8 codes (256 lists, exhaustive). All pairs count, exact
copies too; the columns with `distinct` leave copies out. `ten nearest`: share of a row's ten
nearest in the raw features that are so in the SNIP features. The last line is the default trained
and measured on all shards, as a run does that de-duplicates a data set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from snip_assets.engine.compress import compress
from snip_assets.engine.features import Features
from snip_assets.engine.model import SnipNet, load_model, pca
from snip_assets.engine.objective import Recipe
from snip_assets.engine.settings import Settings
from snip_assets.engine.train import train

RESULTS = Path(__file__).parent / "results"
BASELINE = Recipe(neighbourhood=1, code_weight=0, near_weight=0)
NEIGHBOURS = replace(BASELINE, neighbourhood=16)
NEAR = replace(NEIGHBOURS, near_weight=1.0)
SHARP = replace(NEAR, code_weight=1.0, code_temperature=0.05, commit_weight=0.5)
WIDE, USUAL = {"hidden": 1024, "temperature": 0.05}, {"temperature": 0.05}
VARIANTS: list[tuple[str, dict[str, Any], Recipe | None, str]] = [
    ("PCA", {}, None, "none"),
    ("PCA, rotated by OPQ", {}, None, "opq"),
    ("baseline of the design", WIDE, BASELINE, "none"),
    ("baseline, rotated by OPQ", WIDE, BASELINE, "opq"),
    ("+ neighbourhood batches", WIDE, NEIGHBOURS, "none"),
    ("+ near distances", WIDE, NEAR, "none"),
    ("+ codes, temperature 0.05", WIDE, SHARP, "none"),
    ("+ half the hidden width", USUAL, SHARP, "none"),
    ("+ codes, temperature 0.5", USUAL, Recipe(), "none"),
    ("default: temperature 0.045", {}, Recipe(), "none"),
]


class Yardstick:
    """The true pairs of a data set and the score of any other distance at finding them."""

    def __init__(self, raw: np.ndarray, first: int) -> None:
        self.first, self.rows = first, len(raw)
        _, where = np.unique(raw.view(f"V{raw.itemsize * raw.shape[1]}"), return_index=True)
        self.distinct = np.zeros(len(raw), bool)
        self.distinct[where] = True
        unit = raw.astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        row, earlier, _ = self.near(unit, 0.1)
        self.true = np.sort(row * len(raw) + earlier)
        drawn = np.random.default_rng(0).choice(np.arange(first, len(raw)), 1000, False)
        self.queries = np.sort(drawn)
        self.nearest = self.ten(unit)

    def ten(self, rows: np.ndarray) -> list[set[int]]:
        """The ten nearest of some rows among all."""
        flat = faiss.IndexFlatL2(rows.shape[1])
        flat.add(rows)
        hits = flat.search(rows[self.queries], 11)[1].tolist()
        own = zip(hits, self.queries.tolist(), strict=True)
        return [set([h for h in found if h != query][:10]) for found, query in own]

    def agreement(self, rows: np.ndarray) -> float:
        """Share of the ten nearest in the raw features that are so in other ones."""
        pairs = zip(self.ten(rows), self.nearest, strict=True)
        return round(float(np.mean([len(a & b) / 10 for a, b in pairs])), 3)

    def near(self, rows: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        data, found = torch.from_numpy(rows), []
        lengths = data.square().sum(1)
        for start in range(self.first, len(rows), 1024):
            stop = min(len(rows), start + 1024)
            squared = lengths[start:stop, None] + lengths[None, :stop]
            squared = (squared - 2 * data[start:stop] @ data[:stop].T).numpy()
            row, earlier = np.divmod(np.flatnonzero(squared < most), stop)
            keep = earlier < row + start
            found.append((row[keep] + start, earlier[keep], squared[row[keep], earlier[keep]]))
        row, earlier, distance = (np.concatenate(part) for part in zip(*found, strict=True))
        return row.astype(np.int64), earlier.astype(np.int64), distance

    def score(self, rows: np.ndarray, most: float, recall: float, precision: float) -> list[float]:
        """Precision at a recall and recall at a precision; all pairs, then distinct ones."""
        row, earlier, distance = self.near(rows, most)
        true = np.isin(row * self.rows + earlier, self.true, assume_unique=True)
        scores = []
        for distinct in (False, True):
            keep = np.ones(len(row), bool)
            total = self.true
            if distinct:
                keep = self.distinct[row] & self.distinct[earlier]
                total = total[self.distinct[total // self.rows] & self.distinct[total % self.rows]]
            order = np.argsort(distance[keep], kind="stable")
            ordered = distance[keep][order]
            ends = np.append(ordered[1:] != ordered[:-1], True)
            hits = np.cumsum(true[keep][order])
            precisions = (hits / np.arange(1, len(hits) + 1))[ends]
            recalls = (hits / len(total))[ends]
            scores.append(float(precisions[recalls >= recall].max(initial=0)))
            scores.append(float(recalls[precisions >= precision].max(initial=0)))
        return [round(score, 3) for score in scores]


def rotation(short: np.ndarray, how: str, lists: int = 256, parts: int = 8) -> np.ndarray:
    """Orthogonal matrix for product quantisation of the residuals, dim x dim."""
    dim = short.shape[1]
    if how == "none":
        return np.eye(dim, dtype=np.float32)
    coarse = faiss.Kmeans(dim, lists, niter=10, seed=1)
    coarse.train(short)
    residuals = short - coarse.centroids[coarse.index.search(short, 1)[1][:, 0]]
    matrix = faiss.OPQMatrix(dim, parts)
    matrix.niter = 10
    matrix.train(residuals)
    return faiss.vector_to_array(matrix.A).reshape(dim, dim)


def measure(net: SnipNet, raw: np.ndarray, trained: int, how: str, yard: Yardstick) -> dict:
    short = compress(net, raw, Settings(device="cpu")).astype(np.float32)
    short = np.ascontiguousarray(short @ rotation(short[:trained], how).T)
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(short.shape[1]), short.shape[1], 256, 8, 8)
    index.train(short[:trained])
    decoded = index.sa_decode(index.sa_encode(short))
    names = ("at_recall", "at_precision", "at_recall_distinct", "at_precision_distinct")
    snip = yard.score(short, 0.3, 0.95, 0.97)
    codes = yard.score(decoded, 0.4, 0.80, 0.85)
    return {
        **{f"snip_{name}": value for name, value in zip(names, snip, strict=True)},
        **{f"codes_{name}": value for name, value in zip(names, codes, strict=True)},
        "nearest": yard.agreement(short),
        "codes_error": round(float(np.square(short - decoded).sum(1).mean()), 4),
    }


HEAD = (
    "| variant | seconds | SNIP: precision at recall 0.95 | recall at precision 0.97 | "
    "distinct: precision | recall | PQ8: precision at recall 0.80 | recall at precision 0.85 | "
    "distinct: precision | recall | ten nearest | code error |\n|" + "---|" * 12
)


def line(entry: dict) -> str:
    return "| " + " | ".join(str(value) for value in entry.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "img_emb").glob("img_emb_*.npy"))
    offsets = np.cumsum([0, *(len(np.load(path, mmap_mode="r")) for path in paths)])
    raw = Features(paths, offsets).take(np.arange(offsets[-1]))
    most, last = Features(paths[:-1], offsets[:-1]), int(offsets[-2])
    chosen = [v for v in VARIANTS if not arguments.only or v[0] in arguments.only]
    yard, entries, nets = Yardstick(raw, last), [], {}
    print(HEAD)
    for name, changes, recipe, how in chosen:
        settings = replace(Settings(device="cpu", steps=arguments.steps), **changes)
        key = json.dumps([changes, recipe.__dict__ if recipe else None])
        started = time.perf_counter()
        if key not in nets:
            nets[key] = fit(most, settings, recipe)
        seconds = round(time.perf_counter() - started)
        entry = {"variant": name, "seconds": seconds}
        entries.append(entry | measure(nets[key][0], raw, last, how, yard))
        print(line(entries[-1]), flush=True)
        keep(entries)
    if not arguments.only:
        started = time.perf_counter()
        net, _ = fit(Features(paths, offsets), Settings(device="cpu"), Recipe())
        seconds = round(time.perf_counter() - started)
        entry = {"variant": "default, all shards", "seconds": seconds}
        entries.append(entry | measure(net, raw, len(raw), "none", Yardstick(raw, 0)))
        print(line(entries[-1]), flush=True)
        keep(entries)


def fit(features: Features, settings: Settings, recipe: Recipe | None) -> tuple[SnipNet, int]:
    """The net and its steps; a PCA without a recipe."""
    if recipe is None:
        return pca(features.take(np.arange(len(features))), settings.dim), 0
    with tempfile.TemporaryDirectory() as folder:
        info = train(features, replace(settings, patience=99), Path(folder) / "net", recipe=recipe)
        return load_model(Path(folder) / "net"), info["steps"]


def keep(entries: list[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(entries, indent=1) + "\n")
    text = "\n".join([HEAD, *map(line, entries)])
    (RESULTS / "training.md").write_text(f"{(__doc__ or '').strip()}\n\n{text}\n")


if __name__ == "__main__":
    main()
