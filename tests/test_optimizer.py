"""The optimiser of a search: which scores decay, by how much, and that nothing else does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import smask
from smask.search import steps
from smask.search.data import Batches, Dataset
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.optimizer import (
    DECAY,
    DECAY_A_PASS,
    MOST_BY_PASSES,
    MOST_DECAY,
    decay_of,
    optimizer_of,
    set_rate,
)
from smask.search.scores import MaskedWeight
from smask.search.weights import Maskable


def layer(method: str = "single", *, origin: torch.Tensor | None = None) -> MaskedWeight:
    weights, origins = {"w": Maskable(nn.Parameter(torch.empty(20, 30)), 30)}, {} if origin is None else {"w": origin}
    return masked_weights(weights, {"w": 0.3}, METHODS[method], origins=origins)["w"]


@pytest.mark.parametrize("method", ["single", "signs"])
@pytest.mark.parametrize(("lr", "n_steps"), [(1e-3, 20_000), (3e-3, 4_000)])
def test_the_same_part_of_every_search_is_forgotten(lr: float, n_steps: int, method: str) -> None:
    decay = decay_of(layer(method), lr=lr, n_steps=n_steps)
    assert (1 - lr * decay) ** n_steps == pytest.approx(math.exp(-DECAY), rel=0.01)


def test_short_searches_forget_no_faster() -> None:
    assert decay_of(layer(), lr=1e-3, n_steps=10) == MOST_DECAY


def test_many_passes_forget_more_where_signs_are_searched() -> None:
    """As many passes are remembered whatever their number; never less is forgotten than in few."""
    lr, n_a_pass = 1e-3, 400
    for n_passes in (100, 300):
        decay = decay_of(layer("signs"), lr=lr, n_steps=n_a_pass * n_passes, n_passes=n_passes)
        assert (1 - lr * decay) ** n_a_pass == pytest.approx(math.exp(-DECAY_A_PASS), rel=0.01)
    for method, n_passes in (("signs", 10), ("single", 100)):
        times = {"lr": lr, "n_steps": n_a_pass * n_passes}
        assert decay_of(layer(method), n_passes=n_passes, **times) == DECAY / (lr * times["n_steps"])
    assert decay_of(layer("signs"), lr=lr, n_steps=100, n_passes=100) == MOST_BY_PASSES
    assert decay_of(layer("signs"), lr=lr, n_steps=100, n_passes=20) == MOST_DECAY


def test_a_search_says_how_many_passes_it_makes(digits_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[int]()

    def made(*arguments: Any, n_passes: int, **options: Any) -> torch.optim.Optimizer:
        said.append(n_passes)
        return optimizer_of(*arguments, n_passes=n_passes, **options)

    monkeypatch.setattr(steps, "optimizer_of", made)
    batches = Batches(digits_data, batch_size=512, seed=0)
    smask.find_masks(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), batches, method="signs", density=0.2, epochs=3)
    assert said == [3]


def test_scores_alone_decay() -> None:
    """Without gradients to speak of: a parameter that does not decay stays to the bit."""
    masked, trained, bias = layer(), layer(origin=torch.ones(20, 30)), nn.Parameter(torch.ones(5))
    optimizer = optimizer_of([bias], [masked, trained], lr=1e-3, n_steps=6_000)
    moved = [masked.latent, trained.latent, masked.scale, trained.scale, bias]
    before = [p.detach().clone() for p in moved]
    for rate in (1e-3, 5e-4):
        set_rate(optimizer, rate)
        for parameter in moved:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    (first, *others), (last, *ends) = before, [p.detach() for p in moved]
    torch.testing.assert_close(last, first * (1 - 0.5 * 1e-3) * (1 - 0.5 * 5e-4), rtol=1e-6, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(others, ends, strict=True))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("single", "signs")])
def test_scores_of_other_methods_stay(method: str) -> None:
    assert decay_of(layer(method), lr=1e-3, n_steps=6_000) == 0
