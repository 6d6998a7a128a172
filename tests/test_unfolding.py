"""Convolutions as products of matrices: what they compute, and where they take the place of the library's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from smask.search.data import Batches, Dataset
from smask.search.precision import Precision
from smask.search.unfolding import LEAST_CHANNELS, MOST_PLACES, Unfolded, Unfolding, is_worthwhile

CPU = torch.device("cpu")
MANY = LEAST_CHANNELS

# Sides of images, kernel, stride, padding
SHAPES: list[tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = [
    ((4, 4), (3, 3), (1, 1), (1, 1)), ((8, 8), (3, 3), (2, 2), (1, 1)), ((5, 6), (3, 2), (2, 1), (0, 2)),
    ((6, 5), (5, 3), (1, 2), (2, 0)), ((3, 3), (3, 3), (1, 1), (0, 0)), ((7, 7), (2, 2), (3, 3), (0, 0)),
    ((2, 1), (3, 3), (1, 1), (1, 1)), ((4, 4), (1, 1), (2, 2), (0, 0)),
]  # fmt: skip


def passes(
    convolve: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and gradients of all inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = convolve(*inputs)
    return y.detach(), list(torch.autograd.grad(y, inputs, torch.ones_like(y) if gradient is None else gradient.to(y)))


@pytest.mark.parametrize(("sides", "kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_the_convolution(sides: Any, kernel: Any, stride: Any, padding: Any, has_bias: bool) -> None:
    """As the library's in float64 of the same bfloat16 numbers, but for the rounding of results."""
    random = torch.Generator().manual_seed(5)
    x, weight, bias = (
        torch.randn(*shape, generator=random).bfloat16()
        for shape in ((3, 5, *sides), (4, 5, *kernel), (4,))
    )  # fmt: skip

    def library(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return Unfolded.apply(x, weight, bias, stride, padding)

    shape = library(x.double(), weight.double()).shape
    gradient = torch.randn(shape, generator=random).bfloat16().double()
    given = bias if has_bias else None
    y, gradients = passes(ours, x, weight, given, gradient)
    want, exact = passes(library, *(None if t is None else t.double() for t in (x, weight, given)), gradient)
    assert y.dtype == torch.bfloat16
    assert len(gradients) == 2 + has_bias
    for got, true in zip((y, *gradients), (want, *exact), strict=True):
        assert got.shape == true.shape
        # Windows of the gradient of x are rounded before they are added, one for each place of the kernel.
        torch.testing.assert_close(got.double(), true, rtol=2**-7, atol=2**-7 * float(true.abs().max()))


def test_only_gradients_that_are_wanted() -> None:
    """A first layer's images have none, fixed masks' weights neither."""
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3), torch.randn(4)
    for wanted in itertools.product((False, True), repeat=3):
        given = [t.clone().requires_grad_(w) for t, w in zip((x, weight, bias), wanted, strict=True)]
        y = Unfolded.apply(*given, (1, 1), (1, 1))
        assert y.requires_grad == any(wanted)
        if any(wanted):
            y.sum().backward()
            assert [t.grad is not None for t in given] == list(wanted)
            assert all(t.grad is None or t.grad.dtype == torch.float32 for t in given)


@pytest.mark.parametrize(
    ("shape", "weight", "options", "want"),
    [
        ((2, MANY, 4, 4), (MANY, MANY, 3, 3), {"padding": 1}, True),
        ((2, MANY, 8, 8), (MANY, MANY, 3, 3), {"stride": 2, "padding": (1, 1)}, True),
        ((2, MANY, 5, 4), (MANY, MANY, 3, 3), {"padding": 1}, False),
        ((2, MANY, 8, 2), (MANY, MANY, 3, 3), {"padding": 1}, True),
        ((2, MANY - 1, 4, 4), (MANY, MANY - 1, 3, 3), {"padding": 1}, False),
        ((2, MANY, 4, 4), (MANY - 1, MANY, 3, 3), {"padding": 1}, False),
        ((2, MANY, 4, 4), (MANY, MANY, 1, 1), {}, False),  # a product already
        ((2, MANY, 4, 4), (MANY, MANY, 3, 3), {"padding": "same"}, False),
        ((2, MANY, 4, 4), (MANY, MANY, 3, 3), {"padding": 2, "dilation": 2}, False),
        ((2, 2 * MANY, 4, 4), (2 * MANY, MANY, 3, 3), {"padding": 1, "groups": 2}, False),
        ((MANY, 4, 4), (MANY, MANY, 3, 3), {"padding": 1}, False),  # no batch
        ((0, MANY, 4, 4), (MANY, MANY, 3, 3), {"padding": 1}, False),
        ((2, MANY, 2, 2), (MANY, MANY, 3, 3), {}, False),  # the library says what is wrong
    ],
)  # fmt: skip
def test_which_convolutions_are_products(shape: Any, weight: Any, options: dict[str, Any], want: bool) -> None:
    assert MOST_PLACES == 16
    x, filters = torch.zeros(shape), torch.zeros(weight)
    assert is_worthwhile(x, filters, **options) == want
    with torch.no_grad():
        assert not is_worthwhile(x, filters, **options)
    assert not is_worthwhile(x.to("meta"), filters.to("meta"), **options)


class Deep(nn.Module):
    """Layers that become products, called in all ways there are, and layers that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, MANY, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(MANY)
        self.second = nn.Conv2d(MANY, MANY, 3, padding=1, bias=False)
        self.third = nn.Conv2d(MANY, MANY, (2, 3), stride=(2, 1), padding=(0, 1))
        self.last = nn.Linear(8 * MANY, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(F.conv2d(x, self.second.weight, stride=1, padding=1))  # keywords: left to the library
        x = F.relu(self.second(x))
        return self.last(self.third(x).flatten(1))  # type: ignore[no-any-return]


def counted(monkeypatch: pytest.MonkeyPatch, *, helps: bool) -> list[torch.Size]:
    """Shapes of the weights of products, from now on; whether there are any is not for the processor to say."""
    seen: list[torch.Size] = []
    forward = Unfolded.forward

    def noted(ctx: Any, x: Tensor, weight: Tensor, *others: Any) -> Tensor:
        seen.append(weight.shape)
        return forward(ctx, x, weight, *others)

    monkeypatch.setattr(Unfolded, "forward", staticmethod(noted))
    monkeypatch.setattr(Unfolding, "helps", staticmethod(lambda device, dtype: helps))
    return seen


def test_convolutions_within_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients of a net in bfloat16 are those without products, but for rounding."""
    torch.manual_seed(3)
    net, x = Deep(), torch.randn(6, 1, 8, 8)
    found = []
    for helps in (False, True):
        seen = counted(monkeypatch, helps=helps)
        precision = Precision("bf16", CPU)
        with precision.passes():
            y = net(x)
        F.cross_entropy(y.float(), torch.arange(6)).backward()
        found.append([y.detach().float(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
        assert seen == ([net.second.weight.shape, net.third.weight.shape] if helps else [])
        net.zero_grad()
        net(x)  # outside nothing is different
        assert len(seen) == 2 * helps
        monkeypatch.undo()
    for plain, product in zip(*found, strict=True):
        assert float((plain - product).norm() / plain.norm()) < 0.03


def test_where_products_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert Unfolding.helps(CPU, torch.bfloat16) == amx
        assert not Unfolding.helps(CPU, torch.float32)
        assert not Unfolding.helps(CPU, torch.float16)
        assert not Unfolding.helps(torch.device("cuda"), torch.bfloat16)


def test_a_search_with_products(monkeypatch: pytest.MonkeyPatch, digits_data: Dataset) -> None:
    """Learns as one without, and in other arithmetic there are none."""
    losses = {}
    for precision, helps in (("bf16", False), ("bf16", True), ("fp32", False)):
        seen = counted(monkeypatch, helps=helps)
        torch.manual_seed(1)
        events: list[Any] = []
        smask.find_masks(
            Deep(), Batches(digits_data, batch_size=240, seed=0), density=0.3, epochs=3, seed=0, precision=precision,
            progress=events.append,
        )  # fmt: skip
        losses[precision, helps] = events[-1].loss
        assert bool(seen) == helps
        monkeypatch.undo()
    assert losses["bf16", True] == pytest.approx(losses["bf16", False], rel=0.1)


def test_compiled_nets_have_what_the_compiler_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch, helps=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(MANY, MANY, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * MANY, 10))
    x, losses = torch.randn(4, MANY, 4, 4), []
    for made in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        with Precision("bf16", CPU).passes():
            loss = F.cross_entropy(made(x).float(), torch.arange(4))
        loss.backward()
        losses.append(loss.item())
    assert seen == [net[0].weight.shape]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
