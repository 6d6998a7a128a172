"""Layers that only a batch norm hears: which are found, and what a search makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.recipe import recipe_of
from smask.search.data import Batches, Dataset
from smask.search.norms import normed
from smask.search.weights import maskable


class Net(nn.Module):
    """Layers of all kinds, most of which something else hears too."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.group_norm = nn.GroupNorm(2, 4)
        self.both = nn.Conv2d(4, 4, 3, padding=1)
        self.both_norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.twice_norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.up_norm = nn.BatchNorm2d(4)
        self.late = nn.Conv2d(4, 4, 1)
        self.late_norm = nn.BatchNorm2d(4)
        self.flat = nn.Linear(4, 6)  # small outputs, beside which the usual eps is heard
        self.flat_norm = nn.BatchNorm1d(6, affine=False, eps=1e-9)
        self.last = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.heard(x)))
        x = self.group_norm(self.grouped(x))
        y = self.both(x)
        x = self.both_norm(y) + y
        x = self.twice_norms[1](self.twice(self.twice_norms[0](self.twice(x))))
        x = self.up_norm(self.up(x))
        x = self.late_norm(F.relu(self.late(x)))
        return self.last(self.flat_norm(self.flat(x.mean((2, 3)))))  # type: ignore[no-any-return]


class Frozen(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self


def outputs_change(net: nn.Module, path: str, x: Tensor) -> bool:
    """Whether other factors of channels and another bias of a layer are heard in training."""
    net.train()
    before, module = net(x), net.get_submodule(path)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    factors = torch.rand(len(module.weight), generator=torch.Generator().manual_seed(2)) + 0.5  # type: ignore[arg-type]
    with torch.no_grad():
        module.weight.mul_(factors.view(-1, *[1] * (module.weight.dim() - 1)))  # type: ignore[operator,union-attr]
        if module.bias is not None:
            module.bias.add_(factors)  # type: ignore[operator]
        after = net(x)
    net.load_state_dict(state)
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-3)


def test_what_is_found_is_not_heard() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(16, 1, 8, 8)
    assert normed(net) == {"heard", "flat"}
    # Both passes of the layer that is used twice go to norms: not heard either, but nothing that is looked for.
    for path in ("heard", "grouped", "both", "up", "late", "flat", "last"):
        assert outputs_change(net, path, x) == (path not in {"heard", "flat"}), path


@pytest.mark.parametrize(("name", "n_layers"), [("resnet18", 20), ("resnet20", 19), ("conv4", 0), ("mlp:9-8-7", 0)])
def test_named_nets(name: str, n_layers: int) -> None:
    net = architectures.build(named_nets.architecture(name))
    found = normed(net)
    assert len(found) == n_layers
    marked = {weight.removesuffix(".weight") for weight, one in maskable(net).items() if one.normed}
    assert marked == found
    if found:
        assert {path for path, module in net.named_modules() if isinstance(module, nn.Conv2d)} == found


def test_a_norm_that_does_not_follow() -> None:
    """Kept as it is in training, of another number of channels, or before weights that are those of another layer."""
    for net in (
        nn.Sequential(nn.Conv2d(1, 4, 3), Frozen(4)),
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)),
    ):
        assert normed(net) == frozenset()
    tied = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert normed(tied) == {"0", "2"}
    tied[2].weight = tied[0].weight
    assert normed(tied) == frozenset()


class Restless(nn.Module):
    """A forward pass that leaves something behind, and draws."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.looks = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), looks
        self.n_calls = 0
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.total += 1
        self.seen = x
        if self.looks and x.sum() > 0:
            return x
        return self.norm(self.layer(x)) * torch.rand(())  # type: ignore[no-any-return]


@pytest.mark.parametrize("looks", [False, True])
def test_the_model_is_left_alone(looks: bool) -> None:
    net, called = Restless(looks=looks), list[Any]()
    net.layer.register_forward_hook(lambda *args: called.append(args))
    net.register_forward_pre_hook(lambda *args: called.append(args))
    net.eval()
    before = torch.get_rng_state()
    assert normed(net) == (frozenset() if looks else {"layer"})
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    assert (net.n_calls, float(net.total), called, hasattr(net, "seen")) == (0, 0, [], False)
    net(torch.randn(2, 1, 5, 5))
    assert len(called) == 2 - looks


class Digits(nn.Module):
    """A net for digits with batch norms, on inputs of [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        x = F.relu(self.second_norm(self.second(x)))
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


def searched(dataset: Dataset, **settings: Any) -> nn.Module:
    torch.manual_seed(4)
    settings = {"density": 0.3, "epochs": 4, "seed": 1, "lr": 3e-3} | settings
    return smask.find_masks(Digits(), Batches(dataset, batch_size=64, seed=0), **settings)


@pytest.mark.parametrize("method", ["single", "signs", "coats", "threshold"])
def test_scales_nobody_hears_are_one_power_of_two(digits_data: Dataset, method: str) -> None:
    found = searched(digits_data, method=method)
    recipe = recipe_of(found)
    for name in ("first", "second", "last"):
        scales = recipe.coded[f"{name}.weight"].scale.unique()
        scales = scales[scales != 0]  # those of channels that keep no weight
        assert (len(scales) == 1) == (name != "last")
        if name != "last":
            assert float(scales.frexp().mantissa) == 0.5
    state = found.state_dict()
    assert not state["first.bias"].any()
    assert state["last.bias"].any()
    with torch.no_grad():
        right = (found(digits_data.inputs(digits_data.x_test)).argmax(1) == digits_data.y_test).float().mean()
    assert float(right) > 0.5


def test_methods_and_settings_that_keep_their_scales(digits_data: Dataset) -> None:
    for settings in ({"method": "biprop"}, {"learn_scale": False}, {"learn_scale": False, "scale": "tensor"}):
        recipe = recipe_of(searched(digits_data, epochs=1, **settings))
        assert recipe.coded["first.weight"].scale.numel() in (1, 16)


def test_a_start_has_one_scale_too(digits_data: Dataset) -> None:
    """Its masks are nearest to the trained weights, its scales alike where a norm takes them out."""
    torch.manual_seed(2)
    trained = Digits().state_dict()
    found = searched(digits_data, start=smask.open_base(trained), method="signs", epochs=2)
    scales = recipe_of(found).coded["second.weight"].scale
    assert len(scales[scales != 0].unique()) == 1
    assert float(scales.max().frexp().mantissa) == 0.5


def test_over_a_checkpoint_scales_are_learned(digits_data: Dataset) -> None:
    """Trained weights lie beside statistics that are theirs, which cost nothing while they are as they were."""
    torch.manual_seed(2)
    trained = Digits().state_dict()
    found = searched(digits_data, origin=smask.open_base(trained), method="single")
    assert len(recipe_of(found).coded["first.weight"].scale.unique()) > 2
