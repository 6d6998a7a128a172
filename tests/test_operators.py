"""What operators tell torch about themselves is what they do: layouts, schemas, gradients, under a compiler too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from smask import operators
from smask.modules import PackedConv2d, PackedEmbedding, PackedLinear
from test_packing import random_coded

# Torch warns of parts of torch when its compiler is imported, or anything is first differentiated forwards.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
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


LAYERS = {"linear": lambda: linear(70), "convolution": convolution}
INPUTS = {"linear": (3, 70), "convolution": (2, 3, 5, 4)}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("single", [False, True])
def test_gradients_of_gradients(kind: str, single: bool) -> None:
    """Against numerical differences: float64 runs on the reference."""
    layer, x = LAYERS[kind]().double(), torch.randn(*INPUTS[kind], dtype=torch.float64)
    x = (x[0] if single else x[:1]).requires_grad_()
    weight = torch.randn_like(x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x * x) * 1e-2, x)
    (once,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad((once * weight).sum(), x)
    dense = layer.materialize()
    (want,) = torch.autograd.grad(dense(x).pow(3).sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad((want * weight).sum(), x)
    # Scales times levels are not rounded to float32 in gradients, as weights are.
    torch.testing.assert_close(twice, wanted, rtol=1e-4, atol=1e-2)


TRANSFORMS = {
    "forward": lambda layer, x: torch.func.jvp(layer, (x,), (x.flip(-1),))[1],
    "backward": lambda layer, x: torch.func.grad(lambda x: layer(x).pow(3).sum())(x),
    "jacobian": lambda layer, x: torch.func.jacrev(layer)(x[0]),
    "jacobian forward": lambda layer, x: torch.func.jacfwd(layer)(x[0]),
    "hessian": lambda layer, x: torch.func.hessian(lambda x: layer(x).pow(3).sum())(x[0]),
    "samples": lambda layer, x: torch.func.vmap(layer)(x[:, None]),
    "last samples": lambda layer, x: torch.func.vmap(layer, in_dims=-1, out_dims=-1)(x[..., None].expand(*x.shape, 2)),
    "gradients of samples": lambda layer, x: torch.func.vmap(torch.func.grad(lambda x: layer(x).pow(3).sum()))(x),
    "bias": lambda layer, x: torch.func.grad(
        lambda bias: torch.func.functional_call(layer, {"bias": bias}, (x,)).pow(3).sum()
    )(layer.bias.detach()),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("gradients", [False, True])
def test_transforms_of_functions_are_those_of_dense_layers(kind: str, name: str, gradients: bool) -> None:
    layer, x = LAYERS[kind](), torch.randn(*INPUTS[kind], generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(gradients):
        got, want = (TRANSFORMS[name](net, x) for net in (layer, layer.materialize()))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("gradients", [False, True])
def test_forward_differentiation(kind: str, gradients: bool) -> None:
    layer, found = LAYERS[kind](), []
    x, tangent = torch.randn(2, *INPUTS[kind])
    with torch.set_grad_enabled(gradients):
        for net in (layer, layer.materialize()):
            with forward_ad.dual_level():
                found.append(forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent))).tangent)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("single", [False, True])
def test_transforms_that_begin_after_the_product(kind: str, single: bool) -> None:
    layer, x = LAYERS[kind](), torch.randn(*INPUTS[kind])
    x, found = (x[0] if single else x).requires_grad_(), []
    for net in (layer, layer.materialize()):
        y = net(x)
        ones = torch.ones_like(y).requires_grad_()
        (once,) = torch.autograd.grad(y, x, ones, create_graph=True)
        with forward_ad.dual_level():
            for output, given, like in ((y, x, y), (once, ones, x)):
                dual = forward_ad.make_dual(torch.ones_like(like), 2 * torch.ones_like(like))
                (gradient,) = torch.autograd.grad(output, given, dual, retain_graph=True)
                found.append(forward_ad.unpack_dual(gradient).tangent)
        batch = torch.stack([torch.ones_like(y), torch.zeros_like(y)])
        found += torch.autograd.grad(y, x, batch, is_grads_batched=True)
    for got, want in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("regenerate_signs", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_samples_of_embeddings(regenerate_signs: bool, gradients: bool) -> None:
    layer = PackedEmbedding(random_coded((50, 40)), 77, regenerate_signs=regenerate_signs)
    ids = torch.randint(0, 50, (4, 3))
    with torch.set_grad_enabled(gradients):
        assert torch.equal(torch.func.vmap(layer)(ids), layer(ids))


@pytest.mark.parametrize("kind", LAYERS)
def test_forward_differentiation_compiled(kind: str) -> None:
    layer, x = LAYERS[kind](), torch.randn(*INPUTS[kind])
    want = TRANSFORMS["forward"](layer.materialize(), x)
    got = torch.compile(lambda x: TRANSFORMS["forward"](layer, x), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


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
