from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.recipe import recipe_of
from smask.search import recording, steps
from smask.search.data import Batches, Dataset
from smask.search.objective import Objective
from smask.search.recording import N_BEFORE, N_KINDS, Recorder

LOSS = Objective(F.cross_entropy)
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Steps:
    """An update that counts its calls: the loss is the sum of the inputs."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, batch: recording.Batch, objective: Objective, seen: recording.Seen | None) -> Tensor:
        self.n_calls += 1
        for x, y in batch:
            if seen is not None:
                seen(x, y)
        return sum((x.sum() for x, _ in batch), torch.zeros(()))


class Graph:
    """Stands for a CUDA graph where there is none; replaying is adding up its inputs again."""

    def __init__(self) -> None:
        self.again: Any = None

    def pool(self) -> None:
        return None

    def replay(self) -> None:
        self.again()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Graphs made while a test runs."""
    made: list[Graph] = []

    @contextlib.contextmanager
    def graph(one: Graph, **options: Any) -> Iterator[None]:
        made.append(one)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return made


def batch(value: float, n: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((n,), value), torch.zeros(n))]


def test_steps_run_before_they_are_recorded(graphs: list[Graph]) -> None:
    update = Steps()
    recorder = Recorder(update)
    for step in range(N_BEFORE):
        assert recorder.step("kind", batch(float(step)), LOSS, None) == 3.0 * step
    assert (update.n_calls, len(graphs)) == (N_BEFORE, 0)
    recorder._records((("kind"), *[(recording._form(x), recording._form(y)) for x, y in batch(1.0)]), batch(1.0), LOSS)
    (made,) = recorder._made.values()
    x, _ = made.inputs[0]
    made.graph.again = lambda: made.loss.copy_(x.sum())
    seen: list[tuple[Tensor, Tensor]] = []
    first = recorder.step("kind", batch(5.0), LOSS, lambda outputs, y: seen.append((outputs.clone(), y)))
    second = recorder.step("kind", batch(7.0), LOSS, None)
    assert (first, second) == (15.0, 21.0)  # a loss is not overwritten by the next
    assert update.n_calls == N_BEFORE + 1
    assert torch.equal(seen[0][0], torch.full((3,), 5.0))


def test_kinds_and_shapes_are_recorded_apart_up_to_a_number(graphs: list[Graph]) -> None:
    update = Steps()
    recorder = Recorder(update)
    for n in range(1, N_KINDS + 4):
        for _ in range(N_BEFORE + 1):
            recorder._records(("kind", n), batch(1.0, n), LOSS)
    assert len(graphs) == N_KINDS
    recorder.forget()
    assert recorder.step("kind", batch(2.0), LOSS, None) == 6.0
    assert len(graphs) == N_KINDS


def test_what_looks_at_values_is_not_recorded(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    update = Steps()
    recorder = Recorder(update)

    @contextlib.contextmanager
    def refusing(one: Graph, **options: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    states: list[str] = []
    generator = SimpleNamespace(clone_state=lambda: "as it was", graphsafe_set_state=states.append)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    for _ in range(N_BEFORE + 3):
        assert recorder.step("kind", batch(1.0), LOSS, None) == 3.0
    assert update.n_calls == N_BEFORE + 4  # one of them was the attempt
    assert states == ["as it was"]
    for words in (["a"] * 5, [None] * 5):  # inputs that are no tensors
        assert not Recorder(update)._records("kind", [(words, words)], LOSS)


def test_nothing_is_recorded_on_a_cpu(digits_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "step", lambda *arguments: pytest.fail("a step on a CPU was given to the recorder"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    smask.find_masks(net, Batches(digits_data, batch_size=64, seed=0), density=0.2, epochs=1, record=True)


def images(n: int = 1024) -> Dataset:
    """Pictures with a bright spot, whose place is the class."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (n,), generator=random)
    x = torch.randint(0, 100, (n, 3, 32, 32), generator=random, dtype=torch.uint8)
    for index, place in enumerate(y.tolist()):
        x[index, :, 3 * place : 3 * place + 3, 8:24] += 100
    return Dataset("spots", x, y, x[:256], y[:256])


def found(data: Dataset, net: nn.Module, *, sizes: tuple = (), **options: Any) -> bytes:
    batches = Batches(data, batch_size=64, seed=0, device="cuda", flip=True, shift=1, sizes=sizes)
    model = smask.find_masks(net, batches, density=0.1, epochs=6, device="cuda", record=True, **options)
    return smask.encode(model.state_dict(), recipe_of(model))


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["single", "signs", "coats", "edge-popup", "bernoulli-expected"])
@pytest.mark.parametrize("name", ["conv2", "resnet20"])
def test_recorded_searches_give_the_same_bytes(
    name: str, method: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, net = images(), architectures.build(named_nets.architecture(name))
    options = {"method": method, "precision": precision, "sizes": ((24, 0.4),) if name == "resnet20" else ()}
    made: list[Recorder] = []
    records = Recorder._records

    def counting(self: Recorder, *arguments: Any) -> bool:
        made.append(self)
        return records(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_records", counting)
        recorded = found(data, net, **options)
    assert made
    assert not made[-1]._refused
    monkeypatch.setattr(steps.Search, "_new_recorder", lambda self, device: None)
    assert found(data, net, **options) == recorded


@pytest.mark.gpu
@on_cuda
def test_a_loss_that_looks_at_values_is_launched_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(outputs, y)
        return value if value.item() >= 0 else -value

    net = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(3600, 10))
    with monkeypatch.context() as patch:
        patch.setattr(steps.Search, "_new_recorder", lambda self, device: None)
        plain = found(images(), net)
    assert found(images(), net, loss=loss) == plain
    assert found(images(), net) == plain


class Viewing(nn.Module):
    """Wants images, and what a convolution makes of them, to lie in memory channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.view(len(x), -1)[:, :1]
        return self.linear(self.convolution(x).view(len(x), -1)) + 0 * pixels


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[on_cuda, pytest.mark.gpu])])
def test_images_of_a_caller_stay_as_they_lie(device: str) -> None:
    smask.find_masks(Viewing(), Batches(images(256), batch_size=64, seed=0), density=0.2, epochs=1, device=device)
