"""Operators of torch for packed layers: opaque to ``torch.compile`` and ``torch.export``, with gradients.

A packed matrix travels as its tensors and numbers, since operators take nothing else: ``signs`` is empty, or the low
and high half of the seed and the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.grad import conv2d_input

from . import convolution, kernels, philox
from .convolution import Geometry
from .errors import ArgumentError
from .packing import PackedMatrix, SignSource, dense_rows


def transformed() -> bool:
    """Whether torch differentiates forwards or transforms a function, in which operators and kernels take no part."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def packed_matrix(
    planes: Tensor, scale: Tensor, offset: Tensor | None, *, n_columns: int, signs: Sequence[int]
) -> PackedMatrix:
    """The matrix that an operator was given."""
    return PackedMatrix(planes, n_columns, scale, offset, sign_source(signs))


def sign_source(signs: Sequence[int]) -> SignSource | None:
    """The source of signs that an operator was given."""
    return SignSource(signs[0] | signs[1] << 32, signs[2]) if signs else None


def sign_numbers(source: SignSource | None) -> list[int]:
    """A source of signs as an operator takes it."""
    return [] if source is None else [source.seed & philox.MASK, source.seed >> 32, source.stream]


@torch.library.custom_op("smask::linear", mutates_args=())
def linear(
    x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None, n_columns: int,
    signs: Sequence[int], kernel: str,
) -> Tensor:  # fmt: skip
    """:func:`smask.kernels.matmul`."""
    matrix = packed_matrix(planes, scale, offset, n_columns=n_columns, signs=signs)
    return kernels.matmul(x, matrix, bias, kernel=kernel)


@linear.register_fake
def _(x, planes, scale, offset, bias, n_columns, signs, kernel):  # type: ignore[no-untyped-def]
    torch._check(x.shape[-1] == n_columns)  # type: ignore[no-untyped-call]
    return x.new_empty(*x.shape[:-1], planes.shape[1])


@torch.library.custom_op("smask::linear_input_gradient", mutates_args=())
def linear_input_gradient(
    gradient: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, n_columns: int, signs: Sequence[int]
) -> Tensor:
    """:func:`smask.kernels.input_gradient`."""
    matrix = packed_matrix(planes, scale, offset, n_columns=n_columns, signs=signs)
    rows = gradient.reshape(math.prod(gradient.shape[:-1]), matrix.n_rows)
    return kernels.input_gradient(rows, matrix).view(*gradient.shape[:-1], n_columns)


@linear_input_gradient.register_fake
def _(gradient, planes, scale, offset, n_columns, signs):  # type: ignore[no-untyped-def]
    return gradient.new_empty(*gradient.shape[:-1], n_columns)


def _linear_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, planes, scale, offset, ctx.n_columns, ctx.signs = inputs
    ctx.save_for_backward(planes, scale, offset)


def _linear_gradient_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """The gradient is linear in that of the product, so that its own is the product."""
    if transformed():
        return F.linear(gradient, _dense(ctx, gradient.dtype)), *(None,) * 5
    return linear(gradient, *ctx.saved_tensors, None, ctx.n_columns, ctx.signs, "auto"), *(None,) * 5


linear_input_gradient.register_autograd(_linear_gradient_backward, setup_context=_linear_gradient_context)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, planes, scale, offset, _, ctx.n_columns, ctx.signs, _ = inputs
    ctx.save_for_backward(planes, scale, offset)


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0] and transformed():
        of_x = gradient @ _dense(ctx, gradient.dtype)
    elif ctx.needs_input_grad[0]:
        of_x = linear_input_gradient(gradient, *ctx.saved_tensors, ctx.n_columns, ctx.signs)
    if ctx.needs_input_grad[4]:
        of_bias = gradient.reshape(math.prod(gradient.shape[:-1]), gradient.shape[-1]).sum(0)
    return of_x, None, None, None, of_bias, None, None, None


linear.register_autograd(_linear_backward, setup_context=_linear_context)


@torch.library.custom_op("smask::conv2d", mutates_args=())
def conv2d(
    x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None, n_columns: int,
    signs: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """:func:`smask.convolution.conv2d`."""
    matrix = packed_matrix(planes, scale, offset, n_columns=n_columns, signs=signs)
    return convolution.conv2d(x, matrix, bias, _geometry(kernel, stride, padding, dilation, groups))


@conv2d.register_fake
def _(x, planes, scale, offset, bias, n_columns, signs, kernel, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    weight = x.new_empty(planes.shape[1], *kernel)
    # Contiguous whatever the order of the channels of x, and of its dtype under autocast too.
    return x.new_empty(F.conv2d(x, weight, None, stride, padding, dilation, groups).shape)


@torch.library.custom_op("smask::conv2d_input_gradient", mutates_args=())
def conv2d_input_gradient(
    gradient: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, n_columns: int, signs: Sequence[int],
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    shape: Sequence[int],
) -> Tensor:  # fmt: skip
    """:func:`smask.convolution.conv2d_input_gradient`."""
    matrix = packed_matrix(planes, scale, offset, n_columns=n_columns, signs=signs)
    geometry = _geometry(kernel, stride, padding, dilation, groups)
    images = torch.Size(shape if len(shape) == 4 else (1, *shape))
    of_images = gradient if gradient.dim() == 4 else gradient[None]
    return convolution.conv2d_input_gradient(of_images, matrix, geometry, shape=images).view(*shape)


@conv2d_input_gradient.register_fake
def _(gradient, planes, scale, offset, n_columns, signs, kernel, stride, padding, dilation, groups, shape):  # type: ignore[no-untyped-def]
    return gradient.new_empty(*shape)


def _conv2d_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, planes, scale, offset, ctx.n_columns, ctx.signs, *ctx.geometry, _ = inputs
    ctx.save_for_backward(planes, scale, offset)


def _conv2d_gradient_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """As that of a linear product."""
    if transformed():
        weights = _dense(ctx, gradient.dtype).view(-1, *ctx.geometry[0])
        return F.conv2d(gradient, weights, None, *ctx.geometry[1:]), *(None,) * 11
    return conv2d(gradient, *ctx.saved_tensors, None, ctx.n_columns, ctx.signs, *ctx.geometry), *(None,) * 11


conv2d_input_gradient.register_autograd(_conv2d_gradient_backward, setup_context=_conv2d_gradient_context)


def _conv2d_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, planes, scale, offset, _, ctx.n_columns, ctx.signs, *ctx.geometry = inputs
    ctx.shape = list(x.shape)
    ctx.save_for_backward(planes, scale, offset)


def _conv2d_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0] and transformed():
        weights = _dense(ctx, gradient.dtype).view(-1, *ctx.geometry[0])
        images = gradient if gradient.dim() == 4 else gradient[None]
        shape = torch.Size((len(images), *ctx.shape[-3:]))
        of_x = conv2d_input(shape, weights, images, *ctx.geometry[1:]).view(ctx.shape)  # type: ignore[no-untyped-call]
    elif ctx.needs_input_grad[0]:
        of_x = conv2d_input_gradient(gradient, *ctx.saved_tensors, ctx.n_columns, ctx.signs, *ctx.geometry, ctx.shape)
    if ctx.needs_input_grad[4]:
        of_bias = gradient.sum((-1, -2) if gradient.dim() == 3 else (0, -1, -2))
    return of_x, None, None, None, of_bias, *(None,) * 7


conv2d.register_autograd(_conv2d_backward, setup_context=_conv2d_context)


@torch.library.custom_op("smask::embedding", mutates_args=())
def embedding(
    ids: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, n_columns: int, signs: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Rows of weights: float32 by the formula, rounded to a dtype.

    Raises:
        ArgumentError: An id without a row; not checked on a GPU, where torch stops the program as for dense rows.
    """
    if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < planes.shape[1]:
        raise ArgumentError("ids", f"{int(ids.min())} to {int(ids.max())}", f"0 to {planes.shape[1] - 1}")
    matrix = packed_matrix(planes, scale, offset, n_columns=n_columns, signs=signs)
    return dense_rows(matrix, ids.reshape(-1)).to(dtype).view(*ids.shape, n_columns)


@embedding.register_fake
def _(ids, planes, scale, offset, n_columns, signs, dtype):  # type: ignore[no-untyped-def]
    return planes.new_empty(*ids.shape, n_columns, dtype=dtype)


def _dense(ctx: Any, dtype: torch.dtype) -> Tensor:
    """The weights of a product that a transform goes on from, which began after it."""
    planes, scale, offset = ctx.saved_tensors
    return dense_rows(packed_matrix(planes, scale, offset, n_columns=ctx.n_columns, signs=ctx.signs)).to(dtype)


def _geometry(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    return Geometry(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)
