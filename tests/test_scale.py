"""Accumulated batches, half precision, layers down to their last weight."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.cli.main import main
from smask.errors import ArgumentError, UnsupportedError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.order import Order
from smask.search.precision import Precision
from smask.search.progress import Progress
from smask.search.snapshots import Snapshot
from test_ranks import Held


def small(dataset: Dataset, widths: str = "64-24-10") -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture(f"mlp:{widths}", input_shape=(1, 8, 8), mean=mean, std=std))


def same_masks(one: nn.Module, other: nn.Module) -> float:
    """Smallest part of a layer that agrees."""
    a, b = one.state_dict(), other.state_dict()
    return min(float(((a[name] != 0) == (b[name] != 0)).float().mean()) for name in recipe_of(one).coded)


@pytest.mark.parametrize("method", ["auto", "bernoulli"])
def test_accumulated_batches_are_one_large_one(digits_data: Dataset, method: str) -> None:
    found = {}
    for n in (1, 4):
        batches = Batches(digits_data, batch_size=128 // n, seed=0, shift=1)
        found[n] = smask.find_masks(
            small(digits_data), batches, density=0.3, epochs=4, accumulate=n, method=method
        )  # fmt: skip
    assert same_masks(found[1], found[4]) > 0.99
    for name in ("2.bias", "4.bias"):
        assert torch.allclose(found[1].state_dict()[name], found[4].state_dict()[name], atol=0.02)


def test_unequal_batches_weigh_as_much_as_they_hold() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.randint(3, (12,))
    model = nn.Linear(5, 3)
    whole = smask.find_masks(model, [(x, y)] * 3, density=0.5, epochs=2)
    parts = [(x[:3], y[:3]), (x[3:], y[3:])] * 3
    assert torch.allclose(
        smask.find_masks(model, parts, density=0.5, epochs=2, accumulate=2).weight, whole.weight, atol=1e-6
    )


def test_left_over_batches_are_not_used() -> None:
    order = Order([(torch.tensor([i]), None) for i in range(7)], 2, torch.device("cpu"), n_batches=6, n_together=3)
    assert [[int(x) for x, _ in group] for group in order] == [[0, 1, 2], [3, 4, 5]] * 2
    assert (order.epoch, order.taken) == (2, 0)


@pytest.mark.parametrize(("accumulate", "n"), [(0, 4), (5, 4)])
def test_accumulate_out_of_range(accumulate: int, n: int) -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(nn.Linear(2, 2), [(torch.rand(2, 2), torch.zeros(2))] * n, accumulate=accumulate)
    assert caught.value.name == "accumulate"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(digits_data: Dataset, precision: str) -> None:
    seen: list[torch.dtype] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.training:
                seen.append(out.dtype)
            return out

    def search(precision: str) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), Spy(64, 32), nn.ReLU(), Spy(32, 10))
        batches = Batches(digits_data, batch_size=64, seed=0)
        return smask.find_masks(model, batches, density=0.3, epochs=8, precision=precision)

    half = search(precision)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert all(value.dtype == torch.float32 for value in half.state_dict().values())
    whole = search("fp32")
    assert score(half, digits_data).accuracy == pytest.approx(score(whole, digits_data).accuracy, abs=0.05)


def test_overflowing_gradients_cost_a_step_and_nothing_else() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    precision = Precision("fp16", torch.device("cpu"))
    first = precision.numbers()["scale"]
    for factor, moves in ((1.0, True), (float("inf"), False), (1.0, True)):
        before = weight.detach().clone()
        optimizer.zero_grad()
        precision.backward((weight * factor).sum())
        precision.step(optimizer)
        assert bool((weight != before).all()) == moves
        assert weight.isfinite().all()
    assert precision.numbers()["scale"] == first / 2
    other = Precision("fp16", torch.device("cpu"))
    other.restore(precision.numbers())
    assert other.numbers() == precision.numbers()


def test_a_resumed_search_in_float16_goes_on_with_its_scale(digits_data: Dataset) -> None:
    def search(held: Held) -> bytes:
        model = smask.find_masks(
            small(digits_data), Batches(digits_data, batch_size=128, seed=0), density=0.3, epochs=2, precision="fp16",
            accumulate=2, checkpoints=held,
        )  # fmt: skip
        return smask.encode(model.state_dict(), recipe_of(model))

    held = Held(6)
    whole = search(held)
    assert isinstance(held.held, Snapshot)
    assert search(Held(0, held.held)) == whole


def test_unknown_precision(digits_data: Dataset) -> None:
    with pytest.raises(UnsupportedError) as caught:
        smask.find_masks(small(digits_data), Batches(digits_data, batch_size=256, seed=0), precision="fp8")
    assert caught.value.known == ("fp32", "bf16", "fp16")


def test_layers_down_to_their_last_weight_are_told(digits_data: Dataset) -> None:
    seen: list[Progress] = []
    model = smask.find_masks(
        small(digits_data), Batches(digits_data, batch_size=256, seed=0), density=0.01, density_rule="uniform",
        last_density=1e-4, epochs=1, progress=seen.append,
    )  # fmt: skip
    assert seen[-1].clamped == ("4.weight",)
    assert int((model.get_parameter("4.weight") != 0).sum()) == 1


def test_the_command_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.smask"
    line = ["encode", "--epochs", "1", "--last-density", "0.0001", "-o", str(out), "--device", "cpu"]
    assert main([*line, "--log", str(tmp_path / "log.jsonl")]) == 0
    printed = capsys.readouterr()
    assert "one weight left" in printed.out
    assert "4.weight" in printed.out
    assert "one weight left in 1 layers" in printed.err
    assert '"clamped": ["4.weight"]' in (tmp_path / "log.jsonl").read_text()
