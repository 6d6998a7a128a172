"""Which method ``auto`` means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import smask
from smask import TargetSize, architectures, named_nets
from smask.recipe import recipe_of
from smask.search.choice import BITS, DENSITY, best
from smask.search.data import Batches, Dataset


def test_bounds() -> None:
    assert best(density=DENSITY, bits=None) == "coats"
    assert best(density=DENSITY + 1e-6, bits=None) == "auto"
    assert best(density=1.0, bits=BITS) == "coats"
    assert best(density=0.001, bits=BITS + 1e-6) == "auto"


def found(data: Dataset, **options) -> nn.Module:
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture("mlp:64-200-100-10", input_shape=(1, 8, 8)))
    return smask.find_masks(net, Batches(data, batch_size=128, seed=0), epochs=2, **options)


@pytest.mark.parametrize(
    ("options", "method", "n_planes"),
    [
        ({"density": 0.04}, "coats", 2),
        ({"density": 0.1}, "auto", 1),
        ({"target": TargetSize("1.4kB")}, "coats", 2),  # 0.33 bits a weight
        ({"target": TargetSize("4kB")}, "auto", 1),
    ],
)
def test_small_files_have_three_levels(digits_data: Dataset, options, method: str, n_planes: int) -> None:
    one = found(digits_data, **options)
    assert {len(tensor.planes) for tensor in recipe_of(one).coded.values()} == {n_planes}
    levels = {int(n) for w in recipe_of(one).coded.values() for n in sum(_bits(p) << i for i, p in enumerate(w.planes))}
    assert levels == set(range(2 * n_planes))
    named = found(digits_data, method=method, **options) if method == "coats" else None
    assert named is None or smask.encode(named.state_dict(), recipe_of(named)) == smask.encode(
        one.state_dict(), recipe_of(one)
    )


def _bits(plane: torch.Tensor) -> torch.Tensor:
    return (plane[:, None] >> torch.arange(8) & 1).flatten().int()


def test_one_level_can_be_asked_for(digits_data: Dataset) -> None:
    coded = recipe_of(found(digits_data, density=0.04, method="single")).coded
    assert {len(tensor.planes) for tensor in coded.values()} == {1}


def test_weights_of_a_checkpoint_have_one(digits_data: Dataset) -> None:
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture("mlp:64-200-100-10", input_shape=(1, 8, 8)))
    over = smask.find_masks(
        net,
        Batches(digits_data, batch_size=128, seed=0),
        epochs=1,
        density=0.04,
        origin=smask.open_base(net.state_dict()),
    )
    assert {len(tensor.planes) for tensor in recipe_of(over).coded.values()} == {1}
