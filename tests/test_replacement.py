"""Layers that share weights, or are the model itself, packed and made dense again: what was one is one, in as many
bytes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import replacement
from smask.coded import CodedTensor
from smask.modules import PackedEmbedding, PackedLinear
from smask.recipe import Recipe, attach
from smask.reconstruction import reconstruct
from test_packing import random_coded

SEED = 5


class Twice(nn.Module):
    """One layer, and one block, of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)
        self.b = self.a
        self.block = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.again = self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.b(self.block(self.a(x))))


class Tied(nn.Module):
    """A language model in small, whose head is its embedding."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.emb = nn.Embedding(40, 32)
        self.head = nn.Linear(32, 40, bias=False)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.emb(ids))


def saved(model: nn.Module, coded: dict[str, CodedTensor], path: Path) -> Path:
    for name, tensor in coded.items():
        model.get_parameter(name).data = reconstruct(tensor, SEED)
    attach(model, Recipe(SEED, coded))
    smask.save(model, path)
    return path


def bytes_of(model: nn.Module, path: Path) -> bytes:
    smask.save(model, path)
    return path.read_bytes()


@pytest.mark.parametrize("regenerate_signs", [False, True])
def test_one_module_of_two_names(tmp_path: Path, regenerate_signs: bool) -> None:
    coded = {"a.weight": random_coded((32, 32)), "block.0.weight": random_coded((32, 32), seed=1)}
    file, x = saved(Twice(), coded, tmp_path / "twice.smask"), torch.randn(3, 32)
    dense = smask.load(file, model=Twice())
    packed = smask.load(file, model=Twice(), packed=True, regenerate_signs=regenerate_signs)
    assert packed.a is packed.b
    assert packed.again is packed.block
    assert sorted(replacement.packed_layers(packed)) == ["a.weight", "again.0.weight", "b.weight", "block.0.weight"]
    torch.testing.assert_close(packed(x), dense(x), rtol=1e-4, atol=1e-3)
    again = smask.materialize(packed)
    assert again.a is again.b
    assert torch.equal(again(x), dense(x))
    assert bytes_of(again, tmp_path / "again.smask") == file.read_bytes()


@pytest.mark.parametrize("regenerate_signs", [False, True])
def test_one_parameter_of_two_modules(tmp_path: Path, regenerate_signs: bool) -> None:
    file = saved(Tied(), {"emb.weight": random_coded((40, 32))}, tmp_path / "tied.smask")
    packed, ids = smask.load(file, model=Tied(), packed=True, regenerate_signs=regenerate_signs), torch.arange(5)
    assert [type(module) for module in packed.children()] == [PackedEmbedding, PackedLinear]
    torch.testing.assert_close(packed(ids), smask.load(file, model=Tied())(ids), rtol=1e-4, atol=1e-3)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed):
        model = smask.materialize(twin)
        assert model.head.weight is model.emb.weight
        assert bytes_of(model, tmp_path / "again.smask") == file.read_bytes()
    narrow = smask.materialize(smask.load(file, model=Tied(), packed=True).bfloat16())
    assert narrow.head.weight is narrow.emb.weight
    assert narrow.head.weight.dtype == torch.bfloat16


def test_what_is_shared_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "N_AUTO_WEIGHTS", 1)
    for build, name in ((Tied, "emb.weight"), (Twice, "a.weight")):
        shape = tuple(build().get_parameter(name).shape)
        files = {
            task: saved(build(), {name: random_coded(shape, seed=i)}, tmp_path / task).read_bytes()
            for i, task in enumerate(("one", "two"))
        }
        tasks = smask.Tasks(smask.pack(files))
        model = tasks.load("one", model=build(), packed="auto")
        tasks.switch(model, "two")
        assert bytes_of(smask.materialize(model), tmp_path / "again.smask") == files["two"]


def test_equal_weights_that_were_never_one_stay_two(tmp_path: Path) -> None:
    file = saved(Tied(), {"emb.weight": random_coded((40, 32))}, tmp_path / "tied.smask")
    model = smask.materialize(smask.load(file, model=Tied(tied=False), packed=True))
    assert model.head.weight is not model.emb.weight
    assert bytes_of(model, tmp_path / "again.smask") == file.read_bytes()


def test_other_bits_of_one_of_two_are_kept(tmp_path: Path) -> None:
    file = saved(Tied(), {"emb.weight": random_coded((40, 32))}, tmp_path / "tied.smask")
    packed = smask.load(file, model=Tied(), packed=True)
    other = PackedLinear(random_coded((40, 32), seed=1), SEED)
    packed.head.load_state_dict(other.state_dict())
    model = smask.materialize(packed)
    assert model.head.weight is not model.emb.weight
    assert torch.equal(model.head.weight, other.weight())
    again = smask.load(bytes_of(model, tmp_path / "again.smask"), model=Tied(tied=False))
    assert torch.equal(again.head.weight, other.weight())


def test_what_is_dense_under_one_name_is_so_under_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> Tied:
        net = Tied()
        net.emb.sparse = True
        return net

    file = saved(model(), {"emb.weight": random_coded((40, 32))}, tmp_path / "tied.smask")
    monkeypatch.setattr(replacement, "N_AUTO_WEIGHTS", 1)
    net = smask.load(file, model=model(), packed="auto")
    assert net.head.weight is net.emb.weight
    weight = random_coded((40, 32))
    found = replacement.unpackable(model(), {"emb.weight": weight, "head.weight": weight})
    assert found["head.weight"] == f"the weights of 'emb.weight': {found['emb.weight']}"


@pytest.mark.parametrize("packed", [True, "auto"])
def test_a_model_that_is_a_layer(tmp_path: Path, packed: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "N_AUTO_WEIGHTS", 1)
    file, x = saved(nn.Linear(32, 16), {"weight": random_coded((16, 32))}, tmp_path / "root.smask"), torch.randn(3, 32)
    layer = smask.load(file, model=nn.Linear(32, 16), packed=packed)
    assert isinstance(layer, PackedLinear)
    assert not layer.training
    torch.testing.assert_close(layer(x), smask.load(file, model=nn.Linear(32, 16))(x), rtol=1e-4, atol=1e-3)
    dense = smask.materialize(layer)
    assert type(dense) is nn.Linear
    assert bytes_of(dense, tmp_path / "again.smask") == file.read_bytes()
    assert type(smask.materialize(PackedLinear(random_coded((4, 32)), SEED))) is nn.Linear  # of no file
