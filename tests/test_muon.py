"""Muon: orthogonal steps, the optimiser of torch on matrices, other parameters as before, recorded and spread alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from smask.search import muon
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.muon import COEFFICIENTS, MOMENTUM, N_STEPS, STEP, orthogonal, orthogonal_by_products
from smask.search.optimizer import moments_of, optimizer_of, restore_moments, set_rate, turns
from smask.search.scores import MaskedWeight
from smask.search.weights import Maskable

WAYS = pytest.mark.parametrize("way", [orthogonal, orthogonal_by_products])
SHAPES = pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 9), (9, 1), (1, 1)])


def matrix(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(shape: tuple[int, ...], method: str = "single", *, origin: Tensor | None = None) -> MaskedWeight:
    weights, origins = {"w": Maskable(nn.Parameter(torch.empty(shape)), 30)}, {} if origin is None else {"w": origin}
    return masked_weights(weights, {"w": 0.3}, METHODS[method], origins=origins)["w"]


@WAYS
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_directions_are_as_long(way: Callable[..., Tensor], shape: tuple[int, int], dtype: torch.dtype) -> None:
    given = matrix(shape)
    lengths = torch.linalg.svdvals(given)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    got = way(given, dtype=dtype)
    assert got.dtype == dtype
    assert got.shape == shape
    # Along the singular vectors of the given one, no matter how long it is there; bfloat16 has a hundredth of error.
    along = torch.linalg.multi_dot([left.T, got.float(), right.T]) if min(shape) > 1 else left.T @ got.float() @ right.T
    found = along.diagonal()[lengths > 0.02 * given.norm()]
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3
    assert float((along - along.diagonal().diag()).abs().max()) < 0.05


@WAYS
def test_size_does_not_matter(way: Callable[..., Tensor]) -> None:
    given = matrix((8, 12))
    for factor in (1e-20, 1e15):
        torch.testing.assert_close(way(given * factor), way(given), rtol=1e-3, atol=1e-3)


def test_nothing_stays_nothing() -> None:
    assert not orthogonal_by_products(torch.zeros(4, 6)).any()


def test_convolutions_are_turned() -> None:
    assert turns(layer((8, 8, 3, 3)))
    assert turns(layer((8, 8, 3, 3), "signs"))
    assert turns(layer((8, 24, 3)))
    assert not turns(layer((8, 72)))
    assert not turns(layer((8, 1, 3, 3)))
    assert not turns(layer((64, 3, 3, 3)))  # rows of few weights
    assert not turns(layer((8, 8, 3, 3), origin=torch.ones(8, 8, 3, 3)))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("single", "signs")])
def test_other_methods_are_not(method: str) -> None:
    assert not turns(layer((8, 8, 3, 3), method))


def test_two_iterations_at_once() -> None:
    """A wide matrix takes the steps of its parts of a square one, one iteration after the other."""
    given = matrix((12, 60)) * torch.logspace(0, -3, 60)
    x = given / given.norm()
    a, b, c = COEFFICIENTS
    for _ in range(N_STEPS):
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    torch.testing.assert_close(orthogonal_by_products(given), x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(orthogonal_by_products(given.T), x.T, rtol=1e-3, atol=1e-4)
    half = orthogonal_by_products(given, dtype=torch.bfloat16).float()
    assert float((half - x).norm() / x.norm()) < 0.05


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (80, 8, 3, 3)])
def test_as_torch(shape: tuple[int, ...]) -> None:
    """On the flattened matrix ``torch.optim.Muon``, whose products are in bfloat16, takes the same steps."""
    masked = layer(shape)
    flat = nn.Parameter(masked.latent.detach().flatten(1).clone())
    lr, n_steps = 1e-3, 6_000
    ours = optimizer_of([], [masked], lr=lr, n_steps=n_steps, dtype=torch.bfloat16)
    decay = next(g["weight_decay"] for g in ours.param_groups if g["muon"])
    theirs = torch.optim.Muon(
        [flat], lr=lr, weight_decay=decay, momentum=MOMENTUM, ns_steps=N_STEPS, adjust_lr_fn="match_rms_adamw"
    )
    for step, rate in enumerate((lr, lr / 2, lr / 4)):
        set_rate(ours, rate)
        theirs.param_groups[0]["lr"] = rate
        before = flat.detach().clone(), masked.latent.detach().clone()
        flat.grad = matrix((shape[0], math.prod(shape[1:])), seed=step)
        masked.latent.grad = flat.grad.view(shape).clone()
        ours.step()
        theirs.step()
        their_step = flat.detach() - before[0] * (1 - rate * decay)
        our_step = (masked.latent.detach() - before[1] * (1 - rate * decay)).flatten(1)
        assert float((our_step - their_step * (STEP / 0.2)).norm()) < 0.05 * float(our_step.norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several layers at a time take the steps that they take one after the other, recorded too."""
    shapes = [(64, 64, 3, 3), (128, 64, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3), (32, 512, 1, 1), (512, 512, 3, 3)]

    def found(n_streams: int, *, record: bool) -> list[Tensor]:
        monkeypatch.setattr(muon, "N_STREAMS", n_streams)
        weights = {str(i): Maskable(nn.Parameter(torch.empty(s, device="cuda")), 30) for i, s in enumerate(shapes)}
        layers = [*masked_weights(weights, dict.fromkeys(weights, 0.3), METHODS["single"]).values()]
        optimizer = optimizer_of([], layers, lr=1e-3, n_steps=6_000, dtype=torch.bfloat16)
        given = [matrix(s, seed=place).to("cuda") for place, s in enumerate(shapes)]

        def step() -> None:
            for one, gradient in zip(layers, given, strict=True):
                one.latent.grad = gradient.clone()
            optimizer.step()

        for _ in range(3):
            step()
        graph = torch.cuda.CUDAGraph()
        if record:
            with torch.cuda.graph(graph):
                step()
        for _ in range(5):
            graph.replay() if record else step()
        return [one.latent.detach().cpu() for one in layers]

    expected = found(1, record=False)
    for n_streams, record in [(1, True), (4, False), (4, True)]:
        got = found(n_streams, record=record)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), (n_streams, record)


def test_without_a_gradient_scores_stay_but_for_their_decay() -> None:
    masked = layer((8, 8, 3, 3))
    before = masked.latent.detach().clone()
    optimizer = optimizer_of([], [masked], lr=1.0, n_steps=6)
    masked.latent.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.equal(masked.latent.detach(), before * 0.5)
    optimizer.step()  # none at all: the layer took no part
    assert torch.equal(masked.latent.detach(), before * 0.5)


def test_others_take_steps_of_adam() -> None:
    """To the bit those of the fused AdamW of torch, with a turned layer beside them."""
    turned, dense, bias = layer((8, 8, 3, 3)), layer((8, 72)), nn.Parameter(matrix((8,)))
    copies = [nn.Parameter(p.detach().clone()) for p in (bias, dense.latent)]
    ours = optimizer_of([bias], [turned, dense], lr=1e-3, n_steps=6_000)
    theirs = torch.optim.AdamW(
        [{"params": copies[:1], "weight_decay": 0.0}, {"params": copies[1:], "weight_decay": 0.5}], lr=1e-3, fused=True
    )
    for step in range(3):
        for p, copy in zip((bias, dense.latent), copies, strict=True):
            p.grad = matrix(tuple(p.shape), seed=step)
            copy.grad = p.grad.clone()
        turned.latent.grad = matrix((8, 8, 3, 3), seed=step)
        ours.step()
        theirs.step()
    assert torch.equal(bias, copies[0])
    assert torch.equal(dense.latent, copies[1])


def test_moments_go_on() -> None:
    """Steps after a restart are those without one, to the bit; moments of Adam are refused."""

    def run(n: int, state: dict[str, Tensor] | None = None, latent: Tensor | None = None) -> tuple[Tensor, dict]:
        masked = layer((8, 8, 3, 3))
        optimizer = optimizer_of([], [masked], lr=1e-3, n_steps=6_000)
        first = 0
        if state is not None and latent is not None:
            restore_moments(optimizer, state, {})
            masked.latent.data.copy_(latent)
            first = 2
        for step in range(first, n):
            masked.latent.grad = matrix((8, 8, 3, 3), seed=step)
            optimizer.step()
        return masked.latent.detach(), {name: t.clone() for name, t in moments_of(optimizer, {}).items()}

    half, state = run(2)
    assert torch.equal(run(5)[0], run(5, state, half)[0])
    (name,) = state
    place = name.split(".")[1]
    wrong = {f"adam.{place}.{part}": torch.zeros(8, 8, 3, 3) for part in ("exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match=f"moments of parameter {place}"):
        run(5, wrong | {f"adam.{place}.step": torch.zeros(())}, half)
    with pytest.raises(ValueError, match=f"moments of parameter {place}"):
        run(5, {name: torch.zeros(8, 8)}, half)
