"""Training of weights under masks: its rules on tiny nets, by hand; that it learns, goes on, and is a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask import Checkpoints
from smask.errors import ArgumentError, DivergedError, ResumeError, UnsupportedError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.snapshots import Snapshot
from smask.training.loop import train_weights


def line(weights: list[float]) -> nn.Module:
    net = nn.Linear(len(weights), 1, bias=False)
    net.weight.data = torch.tensor([weights])
    return net


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    """Its gradient in the weights of a line is the input."""
    return (outputs * targets).sum()


ONES = [(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1))]


def test_sgd_by_hand() -> None:
    """Momentum 0.9, decay 0.5, rate 0.1: velocities g + 0.5 w, then 0.9 v + g + 0.5 w."""
    mask = {"weight": torch.tensor([[True, False, True]])}
    trained = train_weights(
        line([1.0, -3.0, 2.0]), ONES, masks=mask, optimizer="sgd", lr=0.1, rate="constant", weight_decay=0.5, epochs=2,
        loss=total,
    )  # fmt: skip
    first = [1 - 0.1 * 1.5, 2 - 0.1 * 5.0]
    second = [first[0] - 0.1 * (0.9 * 1.5 + 1 + 0.5 * first[0]), first[1] - 0.1 * (0.9 * 5 + 4 + 0.5 * first[1])]
    (weights,) = trained.model.state_dict()["weight"]
    assert weights[[0, 2]].tolist() == pytest.approx(second)
    assert weights[1].view(torch.int32) == 0  # not even -0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_outside_stay_where_they_are_held(optimizer: str) -> None:
    mask = {"weight": torch.tensor([[True, False, True]])}
    outside = {"weight": torch.tensor([[9.0, 7.0, 9.0]])}
    trained = train_weights(
        line([1.0, -3.0, 2.0]), ONES, masks=mask, outside=outside, optimizer=optimizer, weight_decay=0.1, epochs=3, loss=total,
    )  # fmt: skip
    (weights,) = trained.model.state_dict()["weight"]
    assert weights[1] == 7
    assert weights[0] < 1
    assert weights[2] < 2


class Swap:
    """At step 2 the first weight goes and the second comes."""

    every = 2

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[float], list[float], list[bool]]] = []

    def __call__(
        self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        self.seen.append((step, *(one["weight"][0].tolist() for one in (weights, gradients, masks))))
        return {"weight": torch.tensor([[False, True, True]])}

    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def settings(self) -> Mapping[str, Any]:
        return {"name": "swap"}

    def tensors(self) -> Mapping[str, Tensor]:
        return {"n": torch.tensor(len(self.seen))}

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.restored = int(tensors["n"])
        return {}


def test_masks_change_by_hand() -> None:
    """Two steps of momentum, a change, one more step: the new weight has no velocity, the old one keeps its own."""
    change = Swap()
    mask = {"weight": torch.tensor([[True, False, True]])}
    trained = train_weights(
        line([1.0, -3.0, 2.0]), ONES, masks=mask, change=change, optimizer="sgd", lr=0.1, rate="constant", epochs=4, loss=total,
    )  # fmt: skip
    ((step, weights, gradients, masks),) = change.seen
    assert (step, gradients, masks) == (2, [1, 2, 4], [True, False, True])  # dense gradients
    assert weights == pytest.approx([1 - 0.1 * (1 + 1.9), 0, 2 - 0.4 * (1 + 1.9)])
    (end,) = trained.model.state_dict()["weight"].tolist()
    assert end == pytest.approx([0, -0.1 * 2, weights[2] - 0.4 * (0.9 * 1.9 + 1)])
    assert trained.masks["weight"].tolist() == [[False, True, True]]


def halves(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=random) < 0.3
        for name, p in model.named_parameters() if p.dim() > 1
    }  # fmt: skip


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


class Redraw(Swap):
    """Other masks every five steps."""

    every = 5

    def __call__(
        self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        self.seen.append((step, [], [], []))
        return {name: torch.rand(mask.shape) < 0.3 for name, mask in masks.items()}


def train(dataset: Dataset, checkpoints: Checkpoints | None, **options: Any) -> bytes:
    net = convolutional(dataset, features=4, dropout=0.2)
    batches = Batches(dataset, batch_size=240, seed=3, shift=1)
    trained = train_weights(
        net, batches, masks=halves(net), change=Redraw(), epochs=3, seed=1, checkpoints=checkpoints, **options
    )
    return smask.encode(trained.model.state_dict(), recipe_of(trained.model))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_training_ends_in_the_same_bytes(digits_data: Dataset, tmp_path: Path, optimizer: str) -> None:
    whole = train(digits_data, None, optimizer=optimizer)
    for stop in (1, 5, 6, 13, 15):
        with pytest.raises(StoppedError):
            train(digits_data, Stopping(tmp_path, stop), optimizer=optimizer)
        torch.manual_seed(stop)
    assert train(digits_data, Checkpoints(tmp_path, resume=True), optimizer=optimizer) == whole
    with pytest.raises(ResumeError) as caught:
        train(
            digits_data,
            Checkpoints(tmp_path, resume=True),
            optimizer=optimizer,
            settings={"criterion": "movement"},
            lr=0.01,
        )
    assert [name for name, _, _ in caught.value.differences] == ["criterion", "lr"]


def test_learns_digits_and_is_a_file(digits_data: Dataset, tmp_path: Path) -> None:
    net = convolutional(digits_data, features=4, dropout=0.0)
    masks = halves(net)
    seen: list[Any] = []
    trained = train_weights(
        net, Batches(digits_data, batch_size=64, seed=0), masks=masks, epochs=16, lr=5e-3, progress=seen.append,
        validate=lambda model: score(model, digits_data).accuracy,
    )  # fmt: skip
    assert score(trained.model, digits_data).accuracy == seen[-1].validation > 0.9
    assert score(net, digits_data).accuracy < 0.5
    n_bytes = smask.save(trained.model, tmp_path / "net.smask")
    loaded = smask.load(tmp_path / "net.smask")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        if name in masks:
            assert torch.equal(value != 0, masks[name])
    assert n_bytes == pytest.approx(seen[-1].n_bytes, rel=0.15)


def test_bfloat16_learns_as_well(digits_data: Dataset) -> None:
    torch.manual_seed(0)
    net, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), []
    net.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batches = Batches(digits_data, batch_size=128, seed=0)
    found = {p: train_weights(net, batches, epochs=30, precision=p).model for p in ("fp32", "bf16")}
    assert {torch.float32, torch.bfloat16} == {*seen}
    assert {p.dtype for p in found["bf16"].parameters()} == {torch.float32}
    assert score(found["bf16"], digits_data).accuracy > score(found["fp32"], digits_data).accuracy - 0.03 > 0.8


def test_what_is_refused(digits_data: Dataset) -> None:
    net = line([1.0, 2.0, 3.0])
    for options, name in (
        ({"lr": 0.0}, "lr"), ({"weight_decay": -1.0}, "weight_decay"), ({"epochs": 0}, "epochs"), ({"seed": -1}, "seed"),
        ({"masks": {"weight": torch.zeros(1, 3, dtype=torch.bool)}}, "masks"), ({"masks": {"weight": torch.ones(1, 3)}}, "masks"),
        ({"masks": {"other": torch.ones(1, 3, dtype=torch.bool)}}, "only"), ({"outside": {"weight": torch.ones(1, 3)}}, "outside"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            train_weights(net, ONES, loss=total, **options)
        assert caught.value.name == name
    for options in ({"optimizer": "lion"}, {"rate": "linear"}, {"precision": "fp16"}):
        with pytest.raises(UnsupportedError) as unknown:
            train_weights(net, ONES, loss=total, **options)
        assert (unknown.value.what, unknown.value.got) == next(iter(options.items()))
    with pytest.raises(DivergedError) as diverged:
        train_weights(net, ONES, loss=lambda outputs, targets: outputs.sum() * torch.inf, epochs=2)
    assert diverged.value.step == 1
