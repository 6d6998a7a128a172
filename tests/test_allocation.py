"""A target size is met by whatever net it is asked of: at most 1 % under it, never over it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import smask
from smask.conversion.allocation import TOLERANCE
from smask.conversion.converter import convert_checkpoint
from smask.conversion.lossy import Plan
from smask.errors import TargetError

Weights = Callable[..., torch.Tensor]
# Below this a single new section, some twenty bytes, may be more than the tolerance.
N_LEAST_EXACT = 1000


def convolutions(weights: Weights) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "conv1.weight": weights(16, 3, 3, 3), "bn1.weight": torch.ones(16), "bn1.bias": torch.zeros(16),
        "bn1.running_mean": torch.randn(16, generator=random), "bn1.running_var": torch.rand(16, generator=random) + 0.1,
        "conv2.weight": weights(32, 16, 3, 3), "fc.weight": weights(50, 512), "fc.bias": torch.randn(50, generator=random),
    }  # fmt: skip


def transformer(weights: Weights) -> dict[str, torch.Tensor]:
    state = {"tokens.weight": weights(500, 32), "places": weights(64, 32)}
    for layer in range(2):
        for name in ("query", "key", "value", "out"):
            state[f"{layer}.{name}.weight"] = weights(32, 32) / 6
        state[f"{layer}.up.weight"], state[f"{layer}.up.bias"] = weights(128, 32) / 6, weights(128) / 10
        state[f"{layer}.conv.weight"], state[f"{layer}.norm.weight"] = weights(32, 32, 5) / 12, 1 + weights(32) / 10
    return {**state, "head.weight": state["tokens.weight"]}


def nets() -> dict[str, dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random) * 2 - 1

    def sparse(*shape: int) -> torch.Tensor:
        return gaussian(*shape) * (torch.rand(*shape, generator=random) < 0.02)

    half = {name: tensor.half() for name, tensor in convolutions(gaussian).items()}
    brain = {name: tensor.bfloat16() for name, tensor in convolutions(uniform).items()}
    double = {name: tensor.double() for name, tensor in convolutions(gaussian).items()}
    return {
        "gaussian": convolutions(gaussian), "uniform": convolutions(uniform), "sparse": convolutions(sparse),
        "equal": convolutions(lambda *shape: gaussian(*shape).sign() / 10),
        "ternary": convolutions(lambda *shape: gaussian(*shape).round().clamp(-1, 1) / 30),
        "heavy tails": convolutions(lambda *shape: gaussian(*shape) / gaussian(*shape).abs().clamp(min=0.01)),
        "huge and tiny": {"huge": gaussian(400, 500)} | {f"{i}": gaussian(16, 16) * 10.0 ** -(i % 5) for i in range(40)},
        "scales apart": {"small": gaussian(100, 100) * 1e-6, "large": gaussian(100, 100) * 1e4, "flat": uniform(50, 60)},
        "half": half, "bfloat16": brain, "double": double,
        "transformer": transformer(gaussian), "transformer, uniform": transformer(uniform),
    }  # fmt: skip


NETS = nets()


def least_and_most(state: dict[str, torch.Tensor], out: Path) -> tuple[int, int]:
    with pytest.raises(TargetError) as caught:
        convert_checkpoint(state, out, target_size=1)
    return caught.value.least, convert_checkpoint(state, out, max_error=0.001, overwrite=True).n_bytes


def check(state: dict[str, torch.Tensor], out: Path, target: int) -> None:
    report = convert_checkpoint(state, out, target_size=target, overwrite=True)
    assert (1 - TOLERANCE) * target <= report.n_bytes == out.stat().st_size <= target
    assert smask.verify(out).same


@pytest.mark.parametrize("kind", NETS)
def test_targets_are_met(kind: str, tmp_path: Path) -> None:
    least, most = least_and_most(NETS[kind], tmp_path / "m.smask")
    for target in (max(N_LEAST_EXACT, least + least // 20), (least * most) ** 0.5):
        check(NETS[kind], tmp_path / "m.smask", int(target))


@pytest.mark.long
@pytest.mark.parametrize("kind", NETS)
def test_many_targets_are_met(kind: str, tmp_path: Path) -> None:
    least, most = least_and_most(NETS[kind], tmp_path / "m.smask")
    target = float(max(N_LEAST_EXACT, least))
    while target < most:
        check(NETS[kind], tmp_path / "m.smask", int(target))
        target *= 1.07


def test_a_target_beyond_sixteen_planes_gives_a_smaller_file(tmp_path: Path) -> None:
    state = NETS["transformer"]
    report = convert_checkpoint(state, tmp_path / "m.smask", target_size="5MB")
    assert report.n_bytes < 0.99 * 5_000_000
    # As exact as sixteen planes are: half a step of 2**-15 of the largest weight.
    largest = max(float(tensor.abs().max()) for tensor in state.values())
    again = smask.decode(tmp_path / "m.smask")
    assert max(float((again[name] - state[name]).abs().max()) for name in state) <= 1.01 * largest * 2**-15


def test_errors_between_steps_are_met_too(tmp_path: Path) -> None:
    for kind in ("equal", "ternary", "uniform"):
        report = convert_checkpoint(NETS[kind], tmp_path / "m.smask", max_error=0.6, overwrite=True)
        assert 0.59 < report.error <= 0.6


def test_plans() -> None:
    plan = Plan(((4, 1.0), (4, 2.0), (10, 2.0), (30, 3.0)))
    assert plan.shortest() == Plan(((4, 1.0), (10, 2.0), (30, 3.0)))
    assert Plan(((0, 1.0), (7, 2.0))).shortest() == Plan(((7, 2.0),))
    assert plan.cut(0, 30, 1) == [(4, 1.0), (6, 2.0), (20, 3.0)]
    # Whole windows only: the first has one element at the finer step, and gets the coarser.
    assert plan.cut(3, 9, 3) == [(6, 2.0), (3, 3.0)]
    assert plan.cut(12, 6, 3) == [(6, 3.0)]
