"""Ramps around thresholds: which part of a weight is kept, how they narrow, and that masks are whole in the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smask.search.densities import layer_densities
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.objective import Objective
from smask.search.ramps import PART_OF_FEW, Ramp, place_ramps
from smask.search.schedule import Schedule
from smask.search.scores import N_FEW, MaskedWeight
from smask.search.steps import N_REFRESH, Search
from smask.search.weights import Maskable, maskable


def layer(
    method: str = "single", *, origin: torch.Tensor | None = None, stride: float = 1.0, n_row: int = 80
) -> MaskedWeight:
    weights, origins = (
        {"w": Maskable(nn.Parameter(torch.empty(60, n_row)), 50)},
        {} if origin is None else {"w": origin},
    )
    return masked_weights(weights, {"w": 0.3}, METHODS[method], origins=origins, stride=stride)["w"]


def test_parts_of_a_clamped_line() -> None:
    ramp = Ramp(torch.device("cpu"))
    assert ramp.width == 0
    ramp.place(0.3, 0.1)
    scores, sign = torch.tensor([[0.0, 0.24, 0.26, 0.3], [0.325, 0.34, 0.36, 9.0]]), torch.tensor([[1.0, -1, 1, -1]])
    out = torch.empty(2, 4)
    parts = ramp.parts(scores * sign, sign.expand(2, 4), out=out)
    assert parts.flatten().tolist() == pytest.approx([0, 0, 0.1, 0.5, 0.75, 0.9, 1, 1], abs=1e-5)
    assert parts.data_ptr() == out.data_ptr()
    ramp.place(-math.inf, 0.1)  # all are kept
    assert ramp.width == 0


@pytest.mark.parametrize("stride", [1.0, 3.0])
def test_weights_near_the_threshold_are_kept_in_part(stride: float) -> None:
    masked = layer(stride=stride)
    masked.method.balance({"w": masked}, {"w": 0.3})
    place_ramps([masked], 0.5)
    assert masked.ramp.width == pytest.approx(0.5 * METHODS["single"].ramp * stride)
    with torch.no_grad():
        parts = masked.method.masked(masked) / masked.base
    scores, threshold = masked.scores(), masked.threshold[0]
    want = ((scores - threshold) / masked.ramp.width + 0.5).clamp(0, 1)
    torch.testing.assert_close(parts, want, rtol=0, atol=2e-5)
    assert float(((parts > 0) & (parts < 1)).float().mean()) > 0.1
    place_ramps([masked], 0.0)
    with torch.no_grad():
        assert torch.equal(masked.method.masked(masked) / masked.base, (scores > threshold).float())


def test_ramps_of_rows_with_few_weights_end_sooner() -> None:
    few, many = layer(n_row=N_FEW - 1), layer(n_row=N_FEW)
    widths = []
    for part in (1.0, 0.7, 1 - PART_OF_FEW, 0.1, 0.0):
        place_ramps([few, many], part)
        widths += [(few.ramp.width / METHODS["single"].ramp, many.ramp.width / METHODS["single"].ramp)]
    assert widths == [pytest.approx(pair) for pair in ((1, 1), (0.5, 0.7), (0, 0.4), (0, 0.1), (0, 0))]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("single", "signs")])
def test_other_methods_have_none(method: str) -> None:
    masked = layer(method)
    place_ramps([masked], 1.0)
    assert masked.ramp.width == 0


def test_masks_of_trained_weights_have_none() -> None:
    masked = layer(origin=torch.randn(60, 80))
    place_ramps([masked], 1.0)
    assert masked.ramp.width == 0


def test_ramps_narrow_until_masks_are_fixed() -> None:
    schedule = Schedule.of(1000, lr=1e-3, hold=0.55, settle=0.08)
    assert schedule.n_ramp == schedule.n_search == 920
    parts = [schedule.ramp(step) for step in range(1000)]
    assert parts == sorted(parts, reverse=True)
    assert (parts[0], parts[schedule.n_ramp - 1] > 0, parts[schedule.n_ramp]) == (1.0, True, 0.0)
    early = Schedule.of(1000, lr=1e-3, hold=0.55, settle=0.08, early=True)  # it may end once the descent is over
    assert early.n_ramp == early.n_descent < schedule.n_ramp


def test_a_search_ends_with_whole_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 70), nn.ReLU(), nn.Linear(70, 5))
    weights = maskable(model)
    densities = layer_densities({name: one.weight.shape for name, one in weights.items()}, density=0.2)
    layers = masked_weights(weights, densities, METHODS["single"])
    search = Search(model, layers, Schedule.of(5 * N_REFRESH, lr=1e-3, hold=0.5, settle=0.1))
    x, y = torch.randn(64, 20), torch.randint(0, 5, (64,))
    n_between = []
    for _ in range(search.schedule.n_steps):
        search.step([(x, y)], Objective(nn.functional.cross_entropy))
        with torch.no_grad():
            parts = [layer.method.masked(layer).div(layer.base) for layer in layers.values() if layer.kept is None]
        n_between.append(sum(int(((part > 0) & (part < 1)).sum()) for part in parts))
    assert n_between[0] > n_between[2 * N_REFRESH] > 0
    assert n_between[2 * N_REFRESH] > n_between[4 * N_REFRESH]
    for name, masked in layers.items():
        assert masked.kept is not None
        assert set((masked.kept * masked.base).unique().tolist()) == {0.0, 1.0}, name
