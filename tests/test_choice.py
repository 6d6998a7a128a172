"""Which method ``auto`` is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import smask
from smask import TargetSize, architectures, named_nets
from smask.recipe import recipe_of
from smask.search.choice import AUTO, FEW_BITS, FEW_KEPT, N_SHALLOW, SIGN_BITS, SIGN_KEPT, best
from smask.search.data import Batches, Dataset
from smask.search.methods import METHODS
from smask.search.weights import maskable


def test_names() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    plain = nn.Sequential(*(nn.Linear(20, 20) for _ in range(N_SHALLOW)))
    deep = nn.Sequential(plain, nn.Linear(20, 20))
    normed, batch_normed = nn.Sequential(deep, nn.LayerNorm(20)), nn.Sequential(deep, nn.BatchNorm1d(20))

    def chosen(net: nn.Module, density: float = 0.5, n_bytes: int | None = None, **known: bool) -> str:
        return best(net, maskable(net), density=density, n_bytes=n_bytes, **{"trained": False, **known})

    def size(bits: float) -> int:
        return round(bits * 400 * (N_SHALLOW + 1) / 8)

    assert (chosen(plain), chosen(deep), chosen(deep, 0.01), chosen(normed)) == ("coats", "single", "single", "single")
    assert (chosen(normed, FEW_KEPT), chosen(normed, FEW_KEPT + 0.01)) == ("coats", "single")
    n_bytes = size(FEW_BITS)
    assert (chosen(normed, 0.01, n_bytes), chosen(normed, 0.01, n_bytes + 1)) == ("coats", "single")
    assert (chosen(batch_normed, SIGN_KEPT), chosen(batch_normed, SIGN_KEPT + 0.01)) == ("single", "signs")
    n_bytes = size(SIGN_BITS)
    assert (chosen(batch_normed, 0.01, n_bytes), chosen(batch_normed, 0.01, n_bytes + 1)) == ("single", "signs")
    assert chosen(nn.Sequential(plain, nn.BatchNorm1d(20))) == "coats"
    assert [chosen(net, trained=True) for net in (plain, normed, batch_normed)] == ["single"] * 3
    assert [chosen(net, 0.01, begun=True) for net in (plain, deep, normed, batch_normed)] == ["signs"] * 4
    assert AUTO not in METHODS


def found(data: Dataset, **options) -> nn.Module:
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture("mlp:64-200-100-10", input_shape=(1, 8, 8)))
    return smask.find_masks(net, Batches(data, batch_size=128, seed=0), epochs=2, **options)


def levels_of(net: nn.Module) -> set[int]:
    return {int(n) for w in recipe_of(net).coded.values() for n in sum(_bits(p) << i for i, p in enumerate(w.planes))}


def _bits(plane: torch.Tensor) -> torch.Tensor:
    return (plane[:, None] >> torch.arange(8) & 1).flatten().int()


@pytest.mark.parametrize("options", [{"density": 0.04}, {"density": 0.5}, {"target": TargetSize("4kB")}])
def test_auto_has_three_levels(digits_data: Dataset, options) -> None:
    one, named = found(digits_data, **options), found(digits_data, method="coats", **options)
    assert levels_of(one) == {0, 1, 2, 3}
    assert smask.encode(named.state_dict(), recipe_of(named)) == smask.encode(one.state_dict(), recipe_of(one))


def test_auto_has_one_level_over_a_checkpoint(digits_data: Dataset) -> None:
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture("mlp:64-200-100-10", input_shape=(1, 8, 8)))
    origin = smask.open_base(net.state_dict())
    one, named = (found(digits_data, density=0.04, origin=origin, method=method) for method in ("auto", "single"))
    assert levels_of(one) == {0, 1}
    assert smask.encode(named.state_dict(), recipe_of(named)) == smask.encode(one.state_dict(), recipe_of(one))


@pytest.mark.parametrize("method", ["single", "signs"])
def test_one_level_can_be_asked_for(digits_data: Dataset, method: str) -> None:
    one = found(digits_data, density=0.04, method=method)
    assert levels_of(one) == {0, 1}
    assert all((coded.flip is not None) == (method == "signs") for coded in recipe_of(one).coded.values())


def test_auto_of_a_deep_net(digits_data: Dataset) -> None:
    def search(method: str, n_hidden: int) -> bytes:
        torch.manual_seed(0)
        widths = "-".join(["64", *["24"] * n_hidden, "10"])
        net = architectures.build(named_nets.architecture(f"mlp:{widths}", input_shape=(1, 8, 8)))
        batches = Batches(digits_data, batch_size=128, seed=0)
        one = smask.find_masks(net, batches, method=method, epochs=1, density=0.2)
        return smask.encode(one.state_dict(), recipe_of(one))

    assert search("auto", N_SHALLOW) == search("single", N_SHALLOW) != search("coats", N_SHALLOW)
    assert search("auto", N_SHALLOW - 1) == search("coats", N_SHALLOW - 1)
