"""Masks whose signs are searched too: weights by hand, on ramps and without, and what the file says of them.

Gradients and weights of the other methods are in tests/test_scores.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smask.reconstruction import reconstruct
from smask.search.finish import Floats, coded_tensors
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.objective import Objective
from smask.search.ramps import N_ON_RAMP, place_ramps
from smask.search.schedule import Schedule
from smask.search.scores import MaskedWeight
from smask.search.steps import Search
from smask.search.weights import Maskable

DENSITY, SEED = 0.3, 5
KINDS = pytest.mark.parametrize("kind", ["signed", "uniform"])


def layer(kind: str) -> MaskedWeight:
    weights = {"w": Maskable(nn.Parameter(torch.empty(60, 80)), 50)}
    (masked,) = masked_weights(weights, {"w": DENSITY}, METHODS["signs"], base=kind, seed=SEED).values()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a third has gone through zero
        masked.latent.mul_(torch.where(torch.rand(60, 80, generator=random) < 1 / 3, -1.0, 1.0))
    masked.method.balance({"w": masked}, {"w": DENSITY})
    return masked


@torch.no_grad()
def written(masked: MaskedWeight) -> torch.Tensor:
    masked.write()
    return (masked.weight / masked.scale).detach().clone()


@KINDS
def test_signs_are_those_of_latents(kind: str) -> None:
    masked = layer(kind)
    kept = masked.latent.abs() > masked.threshold[0]
    assert float(kept.float().mean()) == pytest.approx(DENSITY, abs=1e-3)
    torch.testing.assert_close(written(masked), kept * masked.base.abs() * masked.latent.detach().sign())
    turned = (masked.latent * masked.base < 0) & kept
    assert float(turned.sum() / kept.sum()) == pytest.approx(1 / 3, abs=0.05)


@KINDS
@pytest.mark.parametrize("part", [1.0, 0.5])
def test_on_ramps_they_are_kept_in_part(kind: str, part: float) -> None:
    masked = layer(kind)
    place_ramps([masked], part)
    above_foot = float((masked.latent.abs() > masked.foot).float().mean())
    assert above_foot == pytest.approx(N_ON_RAMP * DENSITY, abs=1e-3)
    assert masked.ramp.width == pytest.approx(part * 2 * (masked.threshold[0] - masked.foot))
    parts = (((masked.latent.detach().abs() - masked.threshold[0]) / masked.ramp.width) + 0.5).clamp(0, 1)
    assert float(((parts > 0) & (parts < 1)).float().mean()) > 0.1
    want = parts * masked.base.abs() * masked.latent.detach().sign()
    torch.testing.assert_close(written(masked), want, rtol=0, atol=2e-5)


@KINDS
def test_gradients_are_straight_through_on_either_side_of_zero(kind: str) -> None:
    masked = layer(kind)
    written(masked)
    upstream = torch.randn(60, 80, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        masked.weight.grad = upstream.clone()
        masked.take_gradient()
    assert masked.latent.grad is not None
    torch.testing.assert_close(masked.latent.grad, upstream * masked.base.abs())


@KINDS
def test_the_file_has_the_weights_of_the_search(kind: str) -> None:
    """Also one whose latent is exactly zero, which has no sign: it is that of the base."""
    masked = layer(kind)
    with torch.no_grad():
        masked.latent[0, :4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    levels = (masked.latent.detach().abs() > masked.threshold[0]).to(torch.uint8)
    levels[0, :2] = 1
    masked.keep(levels.flatten())
    coded = coded_tensors({"w": masked}, {"w": levels.flatten()}, Floats(torch.float32, None))["w"]
    assert coded.flip is not None
    with torch.no_grad():
        masked.write()
    assert torch.equal(reconstruct(coded, SEED), masked.weight.detach())
    assert torch.equal(masked.weight[0, :2] != 0, torch.tensor([True, True]))
    assert torch.equal(masked.weight[0, 2:4] > 0, torch.tensor([True, False]))


def test_ramps_of_most_weights_begin_at_the_least() -> None:
    masked = layer("signed")
    masked.method.balance({"w": masked}, {"w": 0.6})
    assert masked.foot == float(masked.latent.detach().abs().min())
    place_ramps([masked], 1.0)
    assert masked.ramp.width == pytest.approx(2 * (masked.threshold[0] - masked.foot))
    masked.method.balance({"w": masked}, {"w": 1.0})  # all are kept: there is none
    place_ramps([masked], 1.0)
    assert masked.ramp.width == 0


def test_a_search_turns_signs() -> None:
    """A target that wants every sign turned: masks alone could only leave all of them out."""
    linear = nn.Linear(40, 30, bias=False)
    (masked,) = masked_weights({"weight": Maskable(linear.weight, 40)}, {"weight": 0.5}, METHODS["signs"]).values()
    against = -masked.base.clone() * masked.scale.detach()
    search = Search(linear, {"weight": masked}, Schedule.of(600, lr=1e-3, hold=0.5, settle=0.1))
    random = torch.Generator().manual_seed(0)
    for _ in range(600):
        x = torch.randn(64, 40, generator=random)
        search.step([(x, x @ against.T)], Objective(nn.functional.mse_loss))
    assert masked.kept is not None
    kept = masked.kept != 0
    assert int(kept.sum()) == 600
    assert bool((masked.kept[kept] == -masked.base[kept]).all())
