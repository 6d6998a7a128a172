"""Sparse training: what every method exchanges or grows, by hand; that nets learn, go on, and are files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask import Checkpoints, architectures, named_nets
from smask.cli.main import main
from smask.errors import ArgumentError, ResumeError, UnsupportedError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.ranks import Ranks
from smask.search.snapshots import Snapshot
from smask.training.cycles import Cycles, largest, partitions_of
from smask.training.exchanges import Exchanges, at_random, largest_gradient
from smask.training.exploration import Explored
from smask.training.sparse import METHODS, Sparse, random_mask, train_sparse

ALONE = Ranks(None, torch.device("cpu"))
MASK = {"w": torch.tensor([[True, True, False], [True, False, True]])}
WEIGHTS = {"w": torch.tensor([[-3.0, 0.5, 0.0], [1.0, 0.0, -0.2]])}
GRADIENTS = {"w": torch.tensor([[9.0, 0.1, -4.0], [9.0, 3.0, 0.2]])}


def test_rigl_by_hand() -> None:
    change = Exchanges(largest_gradient, every=10, first=0.5, n_steps=40, seed=0)
    # Until step 30. At step 10 half a cosine has a quarter less: 0.375 of four weights, two (1.5 is rounded to even).
    new = change(10, WEIGHTS, GRADIENTS, MASK)
    assert new is not None
    # -0.2 and 0.5 go; -4 and 3 are the gradients that come, by their magnitude.
    assert new["w"].tolist() == [[True, False, True], [True, True, False]]
    assert MASK["w"].sum() == 4  # as it was
    new = change(25, WEIGHTS, GRADIENTS, MASK)  # 0.034 of four, none
    assert new is not None
    assert torch.equal(new["w"], MASK["w"])
    assert change(30, WEIGHTS, GRADIENTS, MASK) is None


def test_set_grows_by_chance_and_drops_by_magnitude() -> None:
    change = Exchanges(at_random, every=10, first=0.3, n_steps=1000, seed=0)
    mask = {"w": random_mask((20, 30), 60, seed=1)}
    weights, zeros = {"w": torch.randn(20, 30) * mask["w"]}, {"w": torch.zeros(20, 30)}
    first, again, later = (change(step, weights, zeros, mask) for step in (10, 10, 20))
    assert first is not None
    assert again is not None
    assert later is not None
    assert torch.equal(first["w"], again["w"])
    assert not torch.equal(first["w"], later["w"])
    smallest = weights["w"].abs()[mask["w"]].sort().values[17]  # 18 of 60 go
    assert bool(first["w"][weights["w"].abs() > smallest].all())
    assert int(first["w"].sum()) == 60
    assert 10 <= int((first["w"] & ~mask["w"]).sum()) <= 18  # some came again


def test_cycles_by_hand() -> None:
    names = ["a", "b", "c"]
    masks = {name: torch.tensor([[True, False, False, False]]) for name in names}
    change = Cycles(
        partitions_of(names, 2), dict.fromkeys(names, 2), masks, rounds=1, n_steps=8, ranks=ALONE,
    )  # fmt: skip
    assert partitions_of(names, 2) == [["a"], ["b", "c"]]
    assert change.every == 3  # two phases in six of eight steps
    ones = [[True] * 4]
    assert {name: mask.tolist() for name, mask in change.masks(0).items()} == {
        "a": ones, "b": masks["b"].tolist(), "c": masks["c"].tolist(),
    }  # fmt: skip
    weights = {"a": torch.tensor([[0.1, -5.0, 2.0, 0.0]]), "b": torch.ones(1, 4), "c": torch.ones(1, 4)}
    new = change(3, weights, {}, change.masks(0))
    assert new is not None
    assert {name: mask.tolist() for name, mask in new.items()} == {
        "a": [[False, True, True, False]], "b": ones, "c": ones,
    }  # fmt: skip
    weights = {
        "a": torch.ones(1, 4),
        "b": torch.tensor([[4.0, 3.0, 2.0, 1.0]]),
        "c": torch.tensor([[0.0, 0.0, -1.0, 3.0]]),
    }
    new = change(6, weights, {}, new)
    assert new is not None
    assert {name: mask.tolist() for name, mask in new.items()} == {
        "a": [[False, True, True, False]], "b": [[True, True, False, False]], "c": [[False, False, True, True]],
    }  # fmt: skip
    assert change(9, weights, {}, new) is None


def test_what_is_pruned_and_grown_at_once_begins_at_zero() -> None:
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, -5.0, 2.0, 0.5]])
    masks = {"0.weight": torch.ones(1, 4, dtype=torch.bool)}
    change = Cycles([["0.weight"]], {"0.weight": 2}, masks, rounds=2, n_steps=8, ranks=ALONE)
    new = change(3, {"0.weight": net[0].weight.detach()}, {}, masks)
    assert new is not None
    assert bool(new["0.weight"].all())
    change.arrange(net, torch.optim.SGD(net.parameters(), lr=1.0))
    assert net[0].weight.tolist() == [[0, -5, 2, 0]]


class Turn:
    """Gives masks one after the other."""

    every = 1

    def __init__(self, *masks: Tensor | None) -> None:
        self.masks = list(masks)

    def __call__(self, *_: Any) -> Mapping[str, Tensor] | None:
        mask = self.masks.pop(0)
        return None if mask is None else {"w": mask}

    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def settings(self) -> Mapping[str, Any]:
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        return {"own": torch.tensor(7)}

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        assert int(tensors["own"]) == 7
        return {}


def test_weights_ever_in_a_mask_are_counted() -> None:
    begin, second, third = (torch.arange(8) == i for i in (0, 1, 5))
    explored = Explored(Turn(second, None, begin, third), {"w": begin}, ALONE)
    rates = [explored.rate()]
    for step in range(4):
        explored(step, {}, {}, {})
        rates.append(explored.rate())
    assert rates == [1 / 8, 2 / 8, 2 / 8, 2 / 8, 3 / 8]
    other = Explored(Turn(), {"w": begin}, ALONE)
    other.restore(explored.tensors())
    assert other.rate() == 3 / 8


def test_masks_of_exact_numbers() -> None:
    mask = random_mask((3, 50), 7, seed=4)
    assert (mask.shape, int(mask.sum())) == ((3, 50), 7)
    assert torch.equal(mask, random_mask((3, 50), 7, seed=4))
    assert largest(torch.tensor([[1.0, -3.0], [2.0, 0.0]]), 2).tolist() == [[False, True], [True, False]]


def net_of(dataset: Dataset) -> nn.Module:
    mean, std = dataset.statistics()
    return architectures.build(named_nets.architecture("mlp:64-128-10", input_shape=(1, 8, 8), mean=mean, std=std))


def train(dataset: Dataset, method: str, **options: Any) -> Sparse:
    batches = Batches(dataset, batch_size=64, seed=2)
    return train_sparse(
        net_of(dataset), batches, method=method, **{"density": 0.05, "epochs": 16, "seed": 1, "lr": 3e-3, **options}
    )


def test_changing_masks_beat_one_that_stays(digits_data: Dataset) -> None:
    seen: dict[str, list[float]] = {method: [] for method in METHODS}
    found = {m: train(digits_data, m, progress=lambda at, m=m: seen[m].append(at.density)) for m in METHODS}
    reached = {method: score(sparse.model, digits_data).accuracy for method, sparse in found.items()}
    assert min(reached["rigl"], reached["gap"]) > reached["static"] + 0.1
    n_kept = round(0.05 * 74 * 128)
    for method, sparse in found.items():
        assert sparse.density == pytest.approx(n_kept / (74 * 128))
        for name, mask in sparse.masks.items():
            assert not bool(sparse.model.state_dict()[name][~mask].any())
        data = smask.encode(sparse.model.state_dict(), recipe_of(sparse.model))
        for name, value in smask.load(data).state_dict().items():
            assert torch.equal(value, sparse.model.state_dict()[name])
        if method != "gap":
            assert set(seen[method]) == {sparse.density}
    assert found["static"].explored == found["static"].density
    assert found["gap"].explored == 1
    assert max(seen["gap"]) > 0.1  # a whole layer
    assert found["gap"].density < found["rigl"].explored < found["set"].explored < 1
    # Layers keep what the rule says, whatever the method.
    for sparse in found.values():
        assert [int(mask.sum()) for mask in sparse.masks.values()] == [
            int(mask.sum()) for mask in found["static"].masks.values()
        ]


def test_weights_begin_as_wide_as_their_masks_ask(digits_data: Dataset) -> None:
    started = train(digits_data, "static", epochs=1, lr=1e-9)
    for name, weight in started.model.named_parameters():
        if name in started.masks:
            fan_in = started.masks[name].float().mean() * weight.shape[1]
            assert float(weight.detach()[started.masks[name]].std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.2)


class StoppedError(Exception):
    pass


class Stopping(Checkpoints):
    """Keeps a checkpoint after every step and ends the process, as it were, after one of them."""

    def __init__(self, folder: Path, stop: int) -> None:
        super().__init__(folder, every=0, resume=True)
        self.stop = stop

    def keep(self, snapshot: Snapshot) -> None:
        super().keep(snapshot)
        if snapshot.step == self.stop:
            raise StoppedError


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_in_the_same_bytes(digits_data: Dataset, tmp_path: Path, method: str) -> None:
    def run(checkpoints: Checkpoints | None, **options: Any) -> tuple[bytes, float]:
        net, batches = convolutional(digits_data, features=4, dropout=0.2), Batches(digits_data, batch_size=240, seed=3)
        found = train_sparse(
            net, batches, method=method, density=0.1, epochs=4, seed=1, checkpoints=checkpoints, **options
        )
        return smask.encode(found.model.state_dict(), recipe_of(found.model)), found.explored

    own = {name: {"every": 2, "fraction": 0.5, "rounds": 2}[name] for name in METHODS[method].numbers}
    whole = run(None, **own)
    for stop in (2, 5, 9, 19):
        with pytest.raises(StoppedError):
            run(Stopping(tmp_path, stop), **own)
        torch.manual_seed(stop)
    assert run(Checkpoints(tmp_path, resume=True), **own) == whole
    with pytest.raises(ResumeError) as caught:
        run(Checkpoints(tmp_path, resume=True), **own, density_rule="uniform")
    assert {"density_rule", "counts"} <= {name for name, _, _ in caught.value.differences}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"density": 0.0}, "density"), ({"density": 1.5}, "density"), ({"fraction": 1.1}, "fraction"), ({"every": 1}, "every"),
        ({"rounds": 0}, "rounds"), ({"epochs": 0}, "epochs"), ({"seed": -1}, "seed"), ({"rounds": 99, "epochs": 1}, "rounds"),
        ({"last_density": 0.0}, "last density"),
    ],
)  # fmt: skip
def test_values_out_of_range(digits_data: Dataset, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        train(digits_data, "gap", **options)
    assert caught.value.name == name


def test_names_that_are_not_known(digits_data: Dataset) -> None:
    with pytest.raises(UnsupportedError) as caught:
        train(digits_data, "snip")
    assert (caught.value.got, caught.value.known) == ("snip", ("rigl", "set", "gap", "static"))
    with pytest.raises(UnsupportedError) as caught:
        train(digits_data, "rigl", density_rule="even")
    assert caught.value.what == "density rule"


QUICK = ["train", "--sparse", "rigl", "--density", "0.1", "--device", "cpu", "-q"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--epochs", "30", "--lr", "5e-3", "--json", "-o", "exact.smask"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] > 0.8
    assert report["density"] == pytest.approx(0.1, abs=1e-4)
    assert report["n_kept"] == sum(
        round(part * n) for part, n in zip(report["densities"].values(), (64 * 128, 1280), strict=True)
    )
    assert report["density"] < report["itop_rate"] < 1
    assert report["n_bytes"] == Path("exact.smask").stat().st_size < report["zstd_bytes"] < report["fp32_bytes"]
    assert main([*QUICK, "--epochs", "1", "--target-size", "1kB", "-o", "small.smask"]) == 0
    assert Path("small.smask").stat().st_size <= 1000
    assert "at one time or another" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--sparse", "snip"], "rigl, set, gap, static"), (["--density", "0.1"], "--sparse beside it"), (["--rounds", "2"], "--sparse beside it"),
        (["--sparse", "set", "--rounds", "2"], "has no use of it"), (["--sparse", "gap", "--every", "9"], "has no use of it"),
        (["--sparse", "set", "--every", "1"], "--every"), (["--sparse", "set", "--density", "2"], "--density"),
        (["--sparse", "set", "--sparse-rule", "even"], "erk, uniform"), (["--sparse", "set", "--base", "signed"], "begin normal"),
        (["x.smask", "--sparse", "set"], "no FILE"), (["--sparse", "gap", "--rounds", "9999", "--epochs", "3"], "fewer"),
        (["--sparse", "gap", "--rank-timeout", "0"], "seconds"),
    ],
)  # fmt: skip
def test_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "-q"]) in (2, 4)
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
