"""Densities that the search chooses: by hand on few weights, and in whole searches."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import TargetSize, architectures, named_nets
from smask.errors import ArgumentError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.allotment import Allotment, movement
from smask.search.data import Batches, Dataset
from smask.search.methods import METHODS
from smask.search.schedule import Schedule
from smask.search.scores import MaskedWeight
from smask.search.snapshots import Snapshot
from smask.search.steps import Search

WORTH = {"a": torch.tensor([0.9, 0.1, 0.4, 0.2]), "b": torch.tensor([0.8, 0.3]), "c": torch.tensor([0.5, 0.05])}
SIZES = {"a": 4, "b": 2, "c": 2}


def test_one_threshold_by_hand() -> None:
    allotment = Allotment(WORTH, SIZES, {})
    assert allotment.at(0.5) == {"a": 0.5, "b": 0.5, "c": 0.5}  # above 0.3: 0.9, 0.4, 0.8 and 0.5
    assert allotment.at(0.25) == {"a": 0.25, "b": 0.5, "c": 0.0}
    assert allotment.at(1.0) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert allotment.at(0.01) == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_a_sample_counts_for_its_layer() -> None:
    # Each of the two sampled weights of a stands for 50, each of b for one: 50 of a and both of b are 52 of 102.
    allotment = Allotment({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([2.0, 1.0])}, {"a": 100, "b": 2}, {})
    assert allotment.at(52 / 102) == {"a": 0.5, "b": 1.0}
    assert allotment.at(51 / 102) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("n_kept", [1, 49, 50, 51, 77, 101])
def test_a_sample_does_not_make_densities_coarse(n_kept: int) -> None:
    allotment = Allotment({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([2.0, 1.0])}, {"a": 100, "b": 2}, {})
    found = allotment.at(n_kept / 102)
    assert 100 * found["a"] + 2 * found["b"] == pytest.approx(n_kept)
    assert found["b"] == {1: 0.0, 49: 0.0, 50: 0.0, 51: 0.5, 77: 1.0, 101: 1.0}[n_kept]


def test_what_the_caller_fixed_stays() -> None:
    allotment = Allotment({name: WORTH[name] for name in "ab"}, SIZES, {"c": 0.5})
    assert allotment.at(0.5) == {"a": 0.5, "b": 0.5, "c": 0.5}  # three of the six others
    with pytest.raises(ArgumentError) as caught:
        allotment.at(0.125)
    assert caught.value.name == "density"
    assert Allotment({}, {"a": 4}, {"a": 0.3}).at(0.9) == {"a": 0.3}


@pytest.mark.parametrize("density", [0.003, 0.1, 1 / 3, 0.7])
def test_a_density_is_met_and_does_not_drift(density: float) -> None:
    random = torch.Generator().manual_seed(0)
    sizes = {f"{n}": n for n in (70, 1000, 4321)}
    allotment = Allotment({name: torch.rand(n, generator=random) * n for name, n in sizes.items()}, sizes, {})

    def together(densities: dict[str, float]) -> float:
        return sum(densities[name] * n for name, n in sizes.items()) / sum(sizes.values())

    first = allotment.at(density)
    assert density - 1 / sum(sizes.values()) <= together(first) <= density + 1e-9
    assert allotment.at(together(first)) == first


def layer(scores: list[list[float]], scale: float, kind: str = "signed") -> MaskedWeight:
    values = torch.tensor(scores)
    made = MaskedWeight(
        nn.Parameter(torch.empty(values.shape)), METHODS["threshold"], kind=kind, seed=3, stream=1, per_channel=True,
        density=0.5, fan_in=2,
    )  # fmt: skip
    with torch.no_grad():
        made.latent.copy_(values * made.sign)
        made.scale.fill_(scale)
    return made


def test_movement_is_that_of_weights() -> None:
    assert movement(layer([[0.5, -0.2], [0.1, 0.0]], 3.0)).tolist() == pytest.approx([1.5, -0.6, 0.3, 0.0])
    masked = layer([[0.5, -0.2], [0.1, 0.0]], 3.0, "normal")
    mean = float(masked.base.abs().mean())
    assert movement(masked).tolist() == pytest.approx([1.5 * mean, -0.6 * mean, 0.3 * mean, 0.0])


def test_a_search_follows_its_scores() -> None:
    """Two layers of one density at first; scores are alike, and weights of the second three times as large."""
    model = nn.Module()
    layers = {"a": layer([[0.3, 0.6], [0.9, 0.03]], 1.0), "b": layer([[0.3, 0.6], [0.9, 0.03]], 3.0)}
    model.a, model.b = (one.parameter for one in layers.values())
    search = Search(model, layers, Schedule.of(10, lr=1e-3, hold=0.5, settle=0.1))
    search.prepare(refresh=True)
    # Worth 0.3, 0.6, 0.9, 0.03 and 0.9, 1.8, 2.7, 0.09; of eight four are kept, equal ones in order of layers.
    assert {name: one.density for name, one in layers.items()} == {"a": 0.25, "b": 0.75}
    levels = search.fix()
    assert levels["a"].tolist() == [0, 0, 1, 0]
    assert levels["b"].tolist() == [1, 1, 1, 0]


def net(dataset: Dataset) -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture("mlp:64-200-10", input_shape=(1, 8, 8), mean=mean, std=std))


def kept(model: nn.Module) -> dict[str, int]:
    return {name: int((model.state_dict()[name] != 0).sum()) for name in recipe_of(model).coded}


def test_densities_differ_from_the_rule_and_are_met(digits_data: Dataset) -> None:
    def search(**options: object) -> nn.Module:
        batches = Batches(digits_data, batch_size=64, seed=0)
        return smask.find_masks(net(digits_data), batches, method="threshold", density=0.05, epochs=15, **options)

    found = search()
    assert score(found, digits_data).accuracy > 0.9
    counts = kept(found)
    assert sum(counts.values()) == pytest.approx(0.05 * 74 * 200, abs=3)
    by_rule = kept(
        smask.find_masks(net(digits_data), Batches(digits_data, batch_size=64, seed=0), density=0.05, epochs=1)
    )
    assert counts != by_rule
    assert counts == kept(search(density_rule="uniform"))  # the rule is nothing to it
    fixed = search(last_density=0.25)
    assert kept(fixed)["4.weight"] == 500
    assert sum(kept(fixed).values()) == pytest.approx(0.05 * 74 * 200, abs=3)


def test_a_size_is_met_across_an_interruption(digits_data: Dataset, tmp_path: Path) -> None:
    class Stop(smask.Checkpoints):
        def keep(self, snapshot: Snapshot) -> None:
            super().keep(snapshot)
            if snapshot.step == 57:
                raise KeyboardInterrupt

    def search(checkpoints: smask.Checkpoints | None) -> bytes:
        model = smask.find_masks(
            net(digits_data), Batches(digits_data, batch_size=128, seed=0), method="threshold", target=TargetSize(1000),
            epochs=8, checkpoints=checkpoints,
        )  # fmt: skip
        return smask.encode(model.state_dict(), recipe_of(model))

    whole = search(None)
    assert 990 <= len(whole) <= 1000
    with pytest.raises(KeyboardInterrupt):
        search(Stop(tmp_path, every=0))
    assert search(smask.Checkpoints(tmp_path, resume=True)) == whole


def test_no_layer_loses_its_last_weight(digits_data: Dataset) -> None:
    model = smask.find_masks(
        net(digits_data), Batches(digits_data, batch_size=128, seed=0), method="threshold", density=2e-4, epochs=2
    )
    assert min(kept(model).values()) == 1
    assert max(kept(model).values()) <= math.ceil(2e-4 * 74 * 200)


def test_decoupled_searches_keep_to_a_rule(digits_data: Dataset) -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(
            net(digits_data), Batches(digits_data, batch_size=128, seed=0), method="threshold", decouple="local"
        )
    assert caught.value.name == "method"
