import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snip_assets.engine import train as train_module
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.features import Features
from snip_assets.engine.model import INFO, load_model
from snip_assets.engine.objective import (
    DEFAULT,
    Codes,
    near_loss,
    neighbour_loss,
    neighbour_target,
)
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import open_npy
from snip_assets.engine.train import train
from snip_assets.engine.validation import Validation

SAMPLE = sorted((Path(train_module.__file__).parents[1] / "sample" / "img_emb").glob("*.npy"))
TINY = Settings(
    hidden=96, dim=32, batch=128, steps=40, pca_below=100, device="cpu", workers=1, patience=99
)


@pytest.fixture(scope="module")
def features() -> Features:
    rows = [len(open_npy(path)) for path in SAMPLE]
    return Features(SAMPLE, np.cumsum([0, *rows]))


def stored(folder: Path, data: np.ndarray) -> Features:
    np.save(folder / "img_emb_0.npy", data)
    return Features([folder / "img_emb_0.npy"], np.array([0, len(data)]))


def test_few_rows_give_a_pca_that_finds_the_pairs(features: Features, tmp_path: Path) -> None:
    info = train(features, Settings(), tmp_path / "net")
    assert info["method"] == "pca" and "pca_below" in info["why"]
    assert info["validation"]["pairs"] == 1475
    assert info["validation"]["precision"] > 0.95 and info["validation"]["recall"] > 0.95
    assert load_model(tmp_path / "net").sizes == (512, 128)


@pytest.mark.parametrize("pca_below", [100, 1000])
def test_rows_that_memory_left_out_are_told(
    features: Features, tmp_path: Path, pca_below: int
) -> None:
    # A quarter of it holds 600 rows of 512 float16.
    settings = replace(TINY, steps=1, pca_below=pca_below, memory_gb=600 * 1024 * 4 / 2**30)
    info = train(features, settings, tmp_path / "net")
    assert (info["rows"], info["rows_in_all"]) == (600, 2000)
    assert "600 rows (of 2,000: memory_gb holds no more)" in info["why"]
    asked = train(features, replace(settings, train_rows=600), tmp_path / "asked")
    assert "memory" not in asked["why"]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_handful_of_rows(features: Features, tmp_path: Path, count: int) -> None:
    few = features.take(np.arange(count))
    info = train(stored(tmp_path, few), Settings(), tmp_path / "net")
    short = load_model(tmp_path / "net")(torch.from_numpy(few)).numpy()
    assert info["method"] == "pca" and short.shape == (count, 128)
    unit = few / np.linalg.norm(few.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(short @ short.T, unit @ unit.T, atol=1e-3)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no rows"):
        train(stored(tmp_path, np.empty((0, 8), np.float16)), Settings(), tmp_path / "net")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_bad_row_is_named(features: Features, tmp_path: Path, value: float) -> None:
    data = features.take(np.arange(50))
    data[33] = value
    with pytest.raises(BadInputError, match=r"img_emb_0.npy: row 33 "):
        train(stored(tmp_path, data), Settings(), tmp_path / "net")


def test_training_beats_the_untrained_net_on_unseen_rows(
    features: Features, tmp_path: Path
) -> None:
    # A random net is the yardstick: it already finds most near pairs of so small a set, so a
    # fixed floor would say nothing about the training.
    settings = replace(TINY, steps=120)
    rows = features.take(np.arange(len(features)))
    trainer = train_module.Trainer(rows, None, settings, DEFAULT, tmp_path / "none")
    untrained = trainer.validation.measure(trainer._start())
    info = train(features, settings, tmp_path / "net")
    assert info["method"] == "net"
    net = load_model(tmp_path / "net")
    assert net.sizes == (512, 96, 32)
    assert trainer.validation.measure(net)["score"] > untrained["score"] + 0.03
    assert json.loads((tmp_path / "net" / INFO).read_text())["curve"] == info["curve"]
    assert not list(tmp_path.glob("*.checkpoint"))


def test_same_seed_same_bytes_other_seed_other_bytes(features: Features, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(features, replace(TINY, seed=seed), tmp_path / name)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    assert (tmp_path / "a/model.json").read_bytes() == (tmp_path / "b/model.json").read_bytes()


def interrupted_at(last: int) -> Callable[..., object]:
    """What the trainer does in a step, until it is interrupted."""
    step = train_module.Trainer._step

    def work(self: train_module.Trainer, net: object, optimiser: object, number: int) -> object:
        if number == last:
            raise KeyboardInterrupt
        return step(self, net, optimiser, number)

    return work


def test_interrupted_training_ends_with_the_same_net(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(features, TINY, tmp_path / "whole")
    step = train_module.Trainer._step
    monkeypatch.setattr(train_module.Trainer, "_step", interrupted_at(29))
    with pytest.raises(KeyboardInterrupt):
        train(features, TINY, tmp_path / "cut")
    assert (tmp_path / "cut.checkpoint").is_file()
    done = []
    monkeypatch.setattr(train_module.Trainer, "_step", lambda *a: done.append(a[-1]) or step(*a))
    train(features, TINY, tmp_path / "cut")
    assert done[0] == 28
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_or_foreign_checkpoint_only_costs_time(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(features, TINY, tmp_path / "a")
    (tmp_path / "torn.checkpoint").write_bytes(b"\x80\x02torn")
    # One of another seed.
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Trainer, "_step", interrupted_at(29))
        with pytest.raises(KeyboardInterrupt):
            train(features, replace(TINY, seed=TINY.seed + 1), tmp_path / "foreign")
    assert (tmp_path / "foreign.checkpoint").is_file()
    weights = "model.safetensors"
    for name in ("torn", "foreign"):
        train(features, TINY, tmp_path / name)
        assert (tmp_path / name / weights).read_bytes() == (tmp_path / "a" / weights).read_bytes()


def test_text_similarities_are_kept(features: Features, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = features.take(np.arange(len(features))).astype(np.float32)
    texts = (images + 0.03 * rng.normal(size=images.shape)).astype(np.float16)
    np.save(tmp_path / "text.npy", texts)
    text = Features([tmp_path / "text.npy"], np.array([0, len(texts)]))
    info = train(features, TINY, tmp_path / "net", text=text)
    assert info["text"]
    net = load_model(tmp_path / "net")
    similar = net(torch.from_numpy(texts)) @ net(torch.from_numpy(images)).T
    nearest = torch.from_numpy(texts).float() @ torch.from_numpy(images).T
    top = nearest.argmax(1)
    rank = (similar > similar[torch.arange(len(top)), top][:, None]).sum(1)
    assert (rank < 20).float().mean() > 0.9


def test_neighbour_loss_is_least_at_the_target() -> None:
    rows = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    raw = rows @ rows.T
    target = neighbour_target(raw, 0.1)
    assert torch.allclose(target.sum(1), torch.ones(20)) and not target.diagonal().any()
    least = neighbour_loss(target, raw, 0.1)
    assert least < neighbour_loss(target, raw.flip(0), 0.1)
    assert near_loss(raw, raw, 0.3) == 0


def test_losses_and_gradients_as_written_out() -> None:
    torch.manual_seed(0)
    raw, short = (torch.nn.functional.normalize(torch.randn(40, d), dim=1) for d in (6, 4))
    raw[1], raw[7], short[9] = raw[0], raw[2] + 0.1, short[3]
    codes = Codes(2, 4)
    codes.fit(short, 0)
    short.requires_grad_()
    near = torch.cdist(raw, raw).square().lt(0.3) | torch.cdist(short, short).square().lt(0.3)
    near = near & ~torch.eye(40, dtype=torch.bool)
    target = neighbour_target(raw @ raw.T, 0.1)
    error = (2 * short @ short.T - 2 * raw @ raw.T)[near]
    decoded = short + (codes.decode(short.detach()) - short).detach()
    away = -(decoded[:, None] - decoded[None]).square().sum(2) / 2 / 0.5
    away = away.masked_fill(torch.eye(40, dtype=torch.bool), -1e4)
    coding = (short - codes.decode(short.detach())).square().sum(1).mean()
    pairs = (
        (near_loss(raw @ raw.T, short @ short.T, 0.3), error.square().mean() / 0.3**2),
        (
            codes.loss(target, short, 0.5, 0.36),
            torch.nn.functional.cross_entropy(away, target) + 0.36 * coding,
        ),
    )
    for found, expected in pairs:
        slopes = [
            torch.autograd.grad(loss, short, retain_graph=True)[0] for loss in (found, expected)
        ]
        assert torch.allclose(found, expected, rtol=1e-4)
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-6)


def test_codes_decode_what_they_were_trained_on() -> None:
    short = torch.nn.functional.normalize(torch.randn(300, 16), dim=1)
    codes = Codes(4, 8)
    assert not codes.ready
    codes.fit(short, 0)
    error = (codes.decode(short) - short).square().sum(1).mean()
    assert codes.ready and error < 0.2


def test_validation_of_a_perfect_and_of_a_useless_net() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(150, 12)).astype(np.float32)
    rows = np.concatenate([base, base + 0.01 * rng.normal(size=base.shape)]).astype(np.float32)
    validation = Validation(rows, 0.1, torch.device("cpu"))
    assert validation.facts()["pairs"] == 150 and validation.facts()["distance"] == 0.1
    # Without the copies there is no true pair: the closest stand in.
    alone = Validation(base, 0.001, torch.device("cpu")).facts()
    assert alone["pairs"] == 37 and alone["distance"] > 0.1
    perfect = validation.measure(torch.nn.functional.normalize)
    assert perfect["precision"] == 1.0 and perfect["recall"] >= 0.99
    noise = validation.measure(lambda x: torch.randn(len(x), 4))
    assert noise["precision"] < 0.1 and noise["recall"] < 0.1


def test_short_rows_train_the_same_net(features: Features, tmp_path: Path) -> None:
    rows = features.take(np.arange(600)).astype(np.float32)
    found = []
    for name, factor in (("whole", 1.0), ("short", 2.0**-46)):
        (tmp_path / name).mkdir()
        info = train(
            stored(tmp_path / name, rows * np.float32(factor)), TINY, tmp_path / name / "n"
        )
        found.append(info["validation"] | {"loss": info["curve"][-1]["loss"]})
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_training_that_diverges_says_so(features: Features, tmp_path: Path, rate: float) -> None:
    """Whether the weights are no numbers, or what they give."""
    with pytest.raises(BadInputError, match=r"no finite numbers.*choose a learning_rate below 1e"):
        train(features, replace(TINY, learning_rate=rate), tmp_path / "net")


def test_any_seed_is_one(features: Features, tmp_path: Path) -> None:
    few = stored(tmp_path, features.take(np.arange(300)))
    assert train(few, replace(TINY, seed=2**63 - 1, steps=3), tmp_path / "net")["method"] == "net"
