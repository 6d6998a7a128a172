"""Batches of whatever shape a loader gives, and batches, arguments and models that cannot be used."""

from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import smask
from smask import Checkpoints, TargetSize
from smask.errors import ArgumentError, DivergedError, UnreachableError
from smask.recipe import recipe_of
from smask.search.nested import called, mapped, moved, tensors_in

Pair = namedtuple("Pair", ("a", "b"))


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))


def examples() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(640, 16, generator=random)
    return x, (x[:, :4]).argmax(1)


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(tensor.split(32) for tensor in examples()), strict=True))


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*examples()), 32, shuffle=True)


def encoded(model: nn.Module) -> bytes:
    return smask.encode(model.state_dict(), recipe_of(model))


def test_kinds_are_kept() -> None:
    one = torch.ones(2)
    value = {"x": Pair(one, [one, (one, "text")]), "n": 3, "none": None}
    doubled = mapped(value, lambda tensor: 2 * tensor)
    assert isinstance(doubled["x"], Pair)
    assert isinstance(doubled["x"].b, list)
    assert isinstance(doubled["x"].b[1], tuple)
    assert [float(tensor[0]) for tensor in tensors_in(doubled)] == [2, 2, 2]
    assert (doubled["x"].b[1][1], doubled["n"], doubled["none"]) == ("text", 3, None)


def test_packed_sequences_are_one_argument() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    assert isinstance(moved([packed], torch.device("cpu"))[0], PackedSequence)
    outputs, _ = called(nn.LSTM(2, 3), packed)
    assert outputs.data.shape == (4, 3)


def test_named_targets_and_packed_inputs_are_searched() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(4, 12), nn.Linear(12, 3)

        def forward(self, x: PackedSequence) -> Tensor:
            return self.head(self.cell(x)[1][0])

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(outputs, targets.a)

    x = pack_sequence([torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 3, 2)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent()
    found = smask.find_masks(model, [(x, Pair(torch.tensor([0, 1, 2]), None))] * 10, density=0.3, epochs=3, loss=loss)
    assert set(recipe_of(found).coded) == {"cell.weight_ih_l0", "cell.weight_hh_l0", "head.weight"}


class Once:
    """Says that it has twenty batches, and gives them in the first epoch."""

    def __init__(self) -> None:
        self._left = iter(batches())

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._left


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from ()


@pytest.mark.parametrize("run", [smask.find_masks, smask.train_weights])
@pytest.mark.parametrize(
    ("given", "got"),
    [
        (Once, "0 of 20 in epoch 2"), (lambda: DataLoader(Endless()), "DataLoader"),
        (lambda: [{"x": examples()[0], "labels": examples()[1]}], "dict"),
        (lambda: [examples()[0]], "Tensor"), (lambda: [(*examples(), 1)], "tuple of 3"),
    ],
)  # fmt: skip
def test_batches_that_are_none(run: Callable[..., Any], given: Callable[[], Any], got: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(net(), given(), epochs=3)
    assert (caught.value.name, caught.value.got) == ("batches", got)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"target": "1kB"}, "target"), ({"target": 1000}, "target"), ({"checkpoints": "run"}, "checkpoints"),
        ({"start": "x.pt"}, "start"), ({"origin": "x.pt"}, "origin"), ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"), ({"density": "a tenth"}, "density"), ({"lr": None}, "lr"),
    ],
)  # fmt: skip
def test_arguments_of_other_kinds_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(net(), batches(), **options)
    assert caught.value.name == name


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    plain = smask.find_masks(net(), batches(), density=0.25, epochs=1, seed=3)
    found = smask.find_masks(
        net(), batches(), density=np.float32(0.25), epochs=1, seed=np.int64(3), checkpoints=Checkpoints(tmp_path)
    )
    assert encoded(found) == encoded(plain)
    ticket = smask.find_ticket(net(), batches(), density=0.25, epochs=1, seed=np.int64(3))
    assert encoded(ticket.model) == encoded(smask.find_ticket(net(), batches(), density=0.25, epochs=1, seed=3).model)


def test_rounds_want_a_keeper_each(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.find_ticket(net(), batches(), density=0.25, epochs=1, checkpoints=Checkpoints(tmp_path / "a"))
    assert "smask.Rounds" in caught.value.want
    smask.find_ticket(net(), batches(), density=0.25, epochs=1, rounds=2, checkpoints=smask.Rounds(tmp_path / "b"))
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["round-001", "round-002"]


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.train_weights(net().requires_grad_(False), batches(), epochs=1)
    assert caught.value.name == "model"


def test_lazy_layers_want_an_input_first() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(model, batches(), epochs=1)
    assert caught.value.name == "0.weight"


class Holding(nn.Module):
    """A net with buffers of one memory, an expanded one, and one of complex numbers that its state has not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        shared = torch.arange(8.0)
        self.register_buffer("whole", shared)
        self.register_buffer("part", shared[:4])
        self.register_buffer("wide", torch.zeros(1).expand(4))
        self.register_buffer("rotations", torch.ones(4, dtype=torch.complex64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x) + self.part * self.rotations.real + self.wide
        return y


def test_buffers_of_any_kind_are_kept_and_resumed(tmp_path: Path) -> None:
    class Stopping(Checkpoints):
        def keep(self, snapshot: Any) -> None:
            super().keep(snapshot)
            if snapshot.step == 13:
                raise KeyboardInterrupt

    whole = encoded(smask.find_masks(Holding(), batches(), density=0.3, epochs=2))
    with pytest.raises(KeyboardInterrupt):
        smask.find_masks(Holding(), batches(), density=0.3, epochs=2, checkpoints=Stopping(tmp_path, every=0))
    kept = Checkpoints(tmp_path, resume=True)
    assert encoded(smask.find_masks(Holding(), batches(), density=0.3, epochs=2, checkpoints=kept)) == whole
    trained = smask.train_weights(Holding(), batches(), epochs=1, checkpoints=Checkpoints(tmp_path / "t", every=0))
    assert torch.equal(trained.model.part, torch.arange(4.0))


@pytest.mark.parametrize("run", [smask.find_masks, smask.train_weights])
@pytest.mark.parametrize("kind", ["complex", "float8", "extra"])
def test_state_that_no_file_has_is_refused_at_once(run: Callable[..., Any], kind: str) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    model = net()
    if kind == "extra":
        model.add_module("extra", Extra())
    else:
        dtype = torch.complex64 if kind == "complex" else torch.float8_e4m3fn
        model.register_buffer("strange", torch.ones(2).to(dtype))
    with pytest.raises(ArgumentError) as caught:
        run(model, batches(), epochs=1)
    assert caught.value.name == ("extra._extra_state" if kind == "extra" else "strange")


def test_a_keeper_is_of_one_search(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, every=0)
    smask.find_masks(net(), batches(), epochs=2, checkpoints=kept)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(net(), batches(), epochs=1, seed=1, checkpoints=kept)
    assert caught.value.name == "checkpoint"
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("way", ["local", "dni"])
def test_guides_draw_nothing_that_batches_draw(tmp_path: Path, way: str) -> None:
    class Stopping(Checkpoints):
        def keep(self, snapshot: Any) -> None:
            super().keep(snapshot)
            if snapshot.step == 13:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"density": 0.3, "epochs": 2, "decouple": way}
    whole = encoded(smask.find_masks(net(), loader(), **options))
    with pytest.raises(KeyboardInterrupt):
        smask.find_masks(net(), loader(), checkpoints=Stopping(tmp_path, every=0), **options)
    assert (
        encoded(smask.find_masks(net(), loader(), checkpoints=Checkpoints(tmp_path, resume=True), **options)) == whole
    )


@pytest.mark.parametrize("fixed", [{"last_density": 1.0}, {"first_density": 0.5}])
@pytest.mark.parametrize("method", ["auto", "threshold"])
def test_fixed_layers_that_are_too_large_alone(fixed: dict[str, float], method: str) -> None:
    target = 120 if "last_density" in fixed else 300
    with pytest.raises(UnreachableError) as caught:
        smask.find_masks(net(), batches(), target=TargetSize(target), epochs=2, method=method, **fixed)
    assert caught.value.target == target
    kept = TargetSize(target, keep_best=True)
    model = smask.find_masks(net(), batches(), target=kept, epochs=2, method=method, **fixed)
    weight = model[2].weight if "last_density" in fixed else model[0].weight
    assert int((weight != 0).sum()) == weight.numel() * next(iter(fixed.values()))


@pytest.mark.parametrize("n_bytes", [380, 420])
def test_patience_without_a_last_part_meets_the_size(n_bytes: int) -> None:
    model = smask.find_masks(
        net(),
        batches(),
        target=TargetSize(n_bytes),
        epochs=12,
        hold=0.5,
        settle=0.0,
        patience=1,
        validate=lambda _: 0.0,
    )
    assert 0.98 * n_bytes <= len(encoded(model)) <= n_bytes


def test_a_loss_that_is_no_number_ends_a_search_for_a_size() -> None:
    with pytest.raises(DivergedError) as caught:
        smask.find_masks(net(), batches(), target=TargetSize(300), epochs=3, lr=1e30)
    assert caught.value.step < 5


def test_frozen_biases_stay() -> None:
    model = net()
    model[2].bias.data.copy_(torch.arange(4.0))
    model[2].bias.requires_grad_(False)
    assert torch.equal(smask.find_masks(model, batches(), density=0.3, epochs=1)[2].bias, torch.arange(4.0))
