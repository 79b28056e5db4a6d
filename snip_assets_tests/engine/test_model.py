import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.model import INFO, SnipNet, load_model, pca, save_model


def net(sizes: list[int], activation: str = "gelu") -> SnipNet:
    torch.manual_seed(0)
    return SnipNet(sizes, activation).eval()


def rows(count: int = 5, dim: int = 12) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_save_load_gives_the_same_net_and_the_same_bytes(tmp_path: Path, activation: str) -> None:
    ours = net([12, 20, 4], activation)
    for name in ("a", "b"):
        save_model(ours, tmp_path / name, {"rows": 7})
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for path in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        loaded = load_model(path)
        assert loaded.sizes == (12, 20, 4)
        assert torch.equal(loaded(rows()), ours(rows()))
    assert json.loads((tmp_path / "a" / INFO).read_text())["rows"] == 7


def test_output_has_unit_length_and_ignores_the_length_of_the_input() -> None:
    ours = net([12, 20, 4])
    short = ours(rows())
    assert torch.allclose(short.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.allclose(ours(rows() * 9), short, atol=1e-6)


def test_plain_state_dict_and_legacy_sequential_are_read(tmp_path: Path) -> None:
    chain = nn.Sequential(
        nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 9), nn.GELU(), nn.Linear(9, 4)
    )
    expected = nn.functional.normalize(chain(nn.functional.normalize(rows(), dim=1)), dim=1)
    torch.save(chain.state_dict(), tmp_path / "dict.pth")
    torch.save({"epoch": 3, "state_dict": chain.state_dict()}, tmp_path / "wrapped.pth")
    torch.save(chain, tmp_path / "whole.pth")
    torch.save(chain.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(chain.half(), tmp_path / "half.pth")
    for name in ("dict", "wrapped", "whole", "old", "half"):
        loaded = load_model(tmp_path / f"{name}.pth")
        assert loaded.sizes == (12, 20, 9, 4)
        assert torch.allclose(loaded(rows()), expected, atol=1e-6 if name != "half" else 1e-2)


def test_activation_of_a_whole_module_is_read(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)), tmp_path / "n.pth")
    assert load_model(tmp_path / "n.pth").activation == "relu"


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)


def test_nothing_a_pickle_asks_for_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(target)))
    torch.save(Evil(target), tmp_path / "torch.pth")
    torch.save({"0.weight": Evil(target)}, tmp_path / "inside.pth")
    torch.save(Own(), tmp_path / "own.pth")
    hooked = nn.Sequential(nn.Linear(12, 4))
    hooked.hook = Evil(target)
    torch.save(hooked, tmp_path / "hooked.pth")
    for name in ("torch", "inside", "hooked"):
        with pytest.raises(BadInputError, match=r"mkdir.*nothing was executed"):
            load_model(tmp_path / f"{name}.pth")
    with pytest.raises(BadInputError):
        load_model(tmp_path / "plain.pth")
    with pytest.raises(BadInputError, match="Own"):
        load_model(tmp_path / "own.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("page.pth", b"<!DOCTYPE html><html>404</html>", "HTML"),
        ("page.safetensors", b"\n <html>", "HTML"),
        ("empty.pth", b"", "empty"),
        ("noise.pth", np.random.default_rng(0).bytes(300), "no torch file"),
        ("text.pth", b"hello, I am a net", "no torch file"),
        ("noise.safetensors", b"\x01" * 300, "no safetensors file"),
    ],
)
def test_garbage_is_named_with_its_cure(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=f"{name}.*{words}") as caught:
        load_model(tmp_path / name)
    assert "fetch it again" in str(caught.value)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    torch.save(net([12, 4]).layers, tmp_path / "n.pth")
    data = (tmp_path / "n.pth").read_bytes()
    (tmp_path / "n.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInputError, match="damaged"):
        load_model(tmp_path / "n.pth")
    with pytest.raises(BadInputError, match="no such file"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"0.weight": torch.ones(3, 2), "2.weight": torch.ones(4, 5)}, "does not fit"),
        ({"0.weight": torch.ones(3, 2), "1.running_mean": torch.ones(3)}, "no Linear layer"),
        ({"0.weight": torch.ones(3, 2, 2)}, "no Linear layer"),
        ({"0.weight": torch.full((3, 2), torch.nan)}, "NaN"),
        ({"0.bias": torch.ones(3)}, "does not fit"),
        ({"head.weight": torch.ones(3, 2), "tail.weight": torch.ones(2, 3)}, "numbered"),
        ({}, "none"),
        ([1, 2], "list"),
    ],
)
def test_what_is_no_chain_of_linear_layers_is_refused(
    tmp_path: Path, weights: object, words: str
) -> None:
    torch.save(weights, tmp_path / "n.pth")
    with pytest.raises(BadInputError, match=words):
        load_model(tmp_path / "n.pth")


def test_layers_are_ordered_by_number_not_by_letter(tmp_path: Path) -> None:
    torch.save(
        OrderedDict([("l.10.weight", torch.ones(2, 3)), ("l.2.weight", torch.ones(3, 5))]),
        tmp_path / "n.pth",
    )
    assert load_model(tmp_path / "n.pth").sizes == (5, 3, 2)


def test_pca_keeps_all_distances_when_it_keeps_all_directions() -> None:
    data = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)
    short = pca(data, 16)(torch.from_numpy(data)).numpy()
    assert short.shape == (6, 16) and not short[:, 6:].any()
    np.testing.assert_allclose(short @ short.T, unit @ unit.T, atol=1e-5)
