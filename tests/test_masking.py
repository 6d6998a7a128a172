"""A loaded ticket keeps to its masks whatever optimiser trains it; a file that is no ticket is refused."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import without_masks
from smask.errors import ArgumentError
from smask.recipe import recipe_of
from smask.search.data import Batches, Dataset

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("copied", [False, True])
def test_masks_hold_under_any_optimizer(found: nn.Module, digits_data: Dataset, name: str, copied: bool) -> None:
    data = smask.encode(found.state_dict(), recipe_of(found))
    net, plain = smask.load(data, trainable=True), smask.load(data)
    assert net.training
    assert list(net.state_dict()) == list(plain.state_dict())
    if copied:
        net = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    optimizer = OPTIMIZERS[name](net.parameters())
    for (x, y), _ in zip(Batches(digits_data, batch_size=256, seed=0), range(4), strict=False):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    for tensor in recipe_of(found).coded:
        weights, before = net.get_parameter(tensor), plain.get_parameter(tensor)
        assert not weights[before == 0].view(torch.int32).any()
        assert (weights != before)[before != 0].any()
    saved = smask.encode(net.state_dict(), recipe_of(net))
    assert torch.equal(smask.load(saved).state_dict()["2.weight"], net.state_dict()["2.weight"])


def test_an_optimizer_that_mixes_weights_is_put_right(found: nn.Module, digits_data: Dataset) -> None:
    net = smask.load(smask.encode(found.state_dict(), recipe_of(found)), trainable=True)
    weight = net.get_parameter("2.weight")
    outside = weight == 0
    optimizer = torch.optim.Muon([weight], lr=0.1)
    x, y = next(iter(Batches(digits_data, batch_size=256, seed=0)))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert weight[outside].any()
    assert not net.state_dict()["2.weight"][outside].any()


def test_only_tickets_are_trainable(found: nn.Module, digits_data: Dataset) -> None:
    state, recipe = found.state_dict(), recipe_of(found)
    with pytest.raises(ArgumentError) as caught:
        smask.load(smask.encode(state, recipe), trainable=True, packed=True)
    assert caught.value.name == "packed"
    stored = smask.encode({name: value.clone() for name, value in state.items()}, without_masks(recipe))
    empty = copy.deepcopy(found)
    coded = dict(recipe.coded)
    name = next(iter(coded))
    coded[name] = type(coded[name])(**{**vars(coded[name]), "planes": (torch.zeros_like(coded[name].planes[0]),)})
    with torch.no_grad():
        empty.get_parameter(name).zero_()
    nothing = smask.encode(empty.state_dict(), type(recipe)(recipe.seed, coded, recipe.arch))
    for data, word in ((stored, "no mask"), (nothing, "keeps nothing")):
        with pytest.raises(ArgumentError) as caught:
            smask.load(data, trainable=True)
        assert caught.value.name == "file"
        assert word in str(caught.value.got)


def test_masks_of_several_levels_are_trained_from_these(digits_data: Dataset, found: nn.Module) -> None:
    batches = Batches(digits_data, batch_size=256, seed=0)
    levels = smask.find_masks(copy.deepcopy(found), batches, method="coats", density=0.2, epochs=2)
    data = smask.encode(levels.state_dict(), recipe_of(levels))
    net, plain = smask.load(data, trainable=True), smask.load(data)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    for name, coded in recipe_of(levels).coded.items():
        assert len(coded.planes) == 2
        weights, before = net.get_parameter(name), plain.get_parameter(name)
        kept = [row for row in before.view(len(before), -1) if row.any()]
        assert max(len(row[row != 0].abs().unique()) for row in kept) == 3
        assert not weights[before == 0].view(torch.int32).any()
        assert (weights != before)[before != 0].any()


def test_differences_from_a_checkpoint_are_no_masks(found: nn.Module, tmp_path: Path) -> None:
    """Where they have no level the weight is that of the checkpoint, not zero."""
    base = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    other = {name: tensor + 0.05 * (torch.rand(tensor.shape) - 0.5) for name, tensor in base.items()}
    path = tmp_path / "over.smask"
    smask.convert_checkpoint(other, path, base=base, max_error=0.01, arch=recipe_of(found).arch)
    with pytest.raises(ArgumentError) as caught:
        smask.load(path, base=base, trainable=True)
    assert caught.value.name == "file"
    assert "differences" in str(caught.value.got)
