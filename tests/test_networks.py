"""Checkpoints that lack what a network has twice, or that old software did not write."""

from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask.conversion.converter import convert_checkpoint
from smask.errors import ArchitectureError
from smask.search.statistics import foldable

TIED = {
    "input": [8],
    "layers": [
        {"op": "embedding", "name": "z", "entries": 40, "features": 16}, "relu",
        {"op": "linear", "name": "head", "inputs": 16, "outputs": 40, "bias": False, "tied": "z.weight"},
    ],
}  # fmt: skip


def normed() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).eval()


def test_counters_of_norms_may_be_missing_beside_a_module(tmp_path: Path) -> None:
    model = normed()
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    convert_checkpoint(old, tmp_path / "m.smask", model=model, calibrate=torch.randn(60, 32), bits=3)
    assert list(smask.decode(tmp_path / "m.smask")) == list(old)


@pytest.mark.parametrize("missing", ["z.weight", "head.weight"])
def test_one_name_of_tied_parameters_is_enough(tmp_path: Path, missing: str) -> None:
    model = smask.architectures.build(TIED)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != missing}
    tokens = torch.randint(40, (20, 8))
    convert_checkpoint(state, tmp_path / "arch.smask", arch=TIED)
    loaded = smask.load(tmp_path / "arch.smask")
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.head.weight is loaded.z.weight
    convert_checkpoint(state, tmp_path / "model.smask", model=model, calibrate=tokens, bits=6)
    assert list(smask.decode(tmp_path / "model.smask")) == list(state)


def test_other_names_are_missed(tmp_path: Path) -> None:
    model = normed()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "0.weight"}
    with pytest.raises(ArchitectureError) as caught:
        convert_checkpoint(state, tmp_path / "m.smask", model=model, calibrate=torch.randn(60, 32), bits=3)
    assert caught.value.differences == ("0.weight is not in the checkpoint",)


def test_a_model_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    model = normed()
    with pytest.warns(FutureWarning):
        model[0] = torch.nn.utils.weight_norm(model[0])
    model(torch.randn(4, 32))
    assert foldable(model)
    with pytest.raises(ArchitectureError) as caught:
        convert_checkpoint(model, tmp_path / "m.smask", calibrate=torch.randn(60, 32), bits=3)
    assert "cannot be copied" in caught.value.differences[0]
