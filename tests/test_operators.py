"""What operators tell torch about themselves is what they do: layouts, schemas, gradients, under a compiler too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smask import operators
from smask.modules import PackedConv2d, PackedEmbedding, PackedLinear
from test_packing import random_coded

# Columns that are whole words, and that are not.
N_COLUMNS = (64, 70)


def linear(n_columns: int, **options: bool) -> PackedLinear:
    return PackedLinear(random_coded((20, n_columns), planes=2), 77, bias=torch.arange(20.0), **options)


def convolution(**options: bool) -> PackedConv2d:
    return PackedConv2d(random_coded((8, 3, 3, 3), flips=True), 77, bias=torch.ones(8), padding=1, **options)


def geometry(layer: PackedConv2d) -> list:
    return [list(field) if isinstance(field, tuple) else field for field in layer.geometry]


@pytest.mark.parametrize("n_columns", N_COLUMNS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_linear(n_columns: int, shape: tuple[int, ...]) -> None:
    layer = linear(n_columns)
    held = (layer.planes, layer.scale, layer.offset)
    x = torch.randn(*shape, n_columns, requires_grad=True)
    torch.library.opcheck(operators.linear, (x, *held, layer.bias, n_columns, layer.signs, "auto"))
    torch.library.opcheck(operators.linear_input_gradient, (torch.randn(*shape, 20), *held, n_columns, layer.signs))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolution(memory: torch.memory_format) -> None:
    layer = convolution()
    held = (layer.planes, layer.scale, layer.offset)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=memory).requires_grad_()
    torch.library.opcheck(operators.conv2d, (x, *held, layer.bias, layer.n_columns, layer.signs, *geometry(layer)))
    gradient = torch.randn(2, 8, 9, 9).contiguous(memory_format=memory)
    arguments = (gradient, *held, layer.n_columns, layer.signs, *geometry(layer), list(x.shape))
    torch.library.opcheck(operators.conv2d_input_gradient, arguments)


def test_embedding() -> None:
    layer = PackedEmbedding(random_coded((50, 40)), 77)
    arguments = (torch.tensor([[3, 4]]), layer.planes, layer.scale, layer.offset, 40, layer.signs, torch.bfloat16)
    torch.library.opcheck(operators.embedding, arguments)


# Torch's compiler warns of parts of torch when it is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_training_around_packed_layers_compiled() -> None:
    """Columns that are no whole words, and images whose channels are last: layouts that Inductor checks."""
    before, after = nn.Conv2d(3, 3, 1), nn.Linear(8, 70)
    model = nn.Sequential(before, convolution(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), after, nn.ReLU(), linear(70))
    model, found = model.to(memory_format=torch.channels_last), []
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    for net in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        net(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-3)
