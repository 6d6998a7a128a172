"""Convolutions with packed weights: tiles of output channels, each used at once by torch's own convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from .errors import ArgumentError
from .kernels import FLOATS, compiles
from .packing import PackedMatrix, dense_rows
from .sums import finished
from .tiles import level_tiles, natural_order


class Geometry(NamedTuple):
    """What a two-dimensional convolution is beside its weights, whose rows are output channels.

    Attributes:
        kernel: Input channels of a group, height and width.
        stride, padding, dilation: Of height and width.
        groups: Groups of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _Piece(NamedTuple):
    """Output channels of one or more whole groups, or of a part of one group."""

    outputs: slice
    inputs: slice
    groups: int
    levels: Tensor


def conv2d(x: Tensor, packed: PackedMatrix, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``F.conv2d`` with packed weights; levels are exact in the dtype of x, scales and bias are applied in float32.

    Args:
        x: Floating [N, C, H, W] or [C, H, W].
        packed: Weights of one row an output channel.
        bias: [R], or None.
        geometry: The convolution.

    Raises:
        ArgumentError: Another number of channels, another device, a dtype that is not floating.
    """
    _check(x, packed, geometry)
    images = x if x.dim() == 4 else x[None]
    y: Tensor | None = None
    for piece in _pieces(packed, _dtype(x), geometry):
        inputs = images[:, piece.inputs].to(piece.levels.dtype)
        part = F.conv2d(inputs, piece.levels, None, geometry.stride, geometry.padding, geometry.dilation, piece.groups)
        if y is None:
            y = x.new_empty(part.shape[0], packed.n_rows, *part.shape[2:])
        y[:, piece.outputs] = finished(part, packed, bias, piece.outputs, dim=1)
    if y is None:
        raise ArgumentError("weights", "no output channels", "at least one")
    return y if x.dim() == 4 else y[0]


def differentiable(x: Tensor, packed: PackedMatrix, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """:func:`conv2d` with dense weights, in operations that torch differentiates, forwards too, and batches."""
    _check(x, packed, geometry)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weights = dense_rows(packed).to(wide).view(packed.n_rows, *geometry.kernel)
    bias = None if bias is None else bias.to(wide)
    return F.conv2d(x.to(wide), weights, bias, *geometry[1:]).to(x.dtype)


def conv2d_input_gradient(gradient: Tensor, packed: PackedMatrix, geometry: Geometry, *, shape: torch.Size) -> Tensor:
    """Gradient of the images [N, C, H, W] from that of the convolution [N, R, H', W']."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    scaled = gradient.to(wide) * packed.scale.view(1, -1, 1, 1)
    total = scaled.new_zeros(shape)
    for piece in _pieces(packed, wide, geometry):
        total[:, piece.inputs] += conv2d_input(  # type: ignore[no-untyped-call]
            total[:, piece.inputs].shape, piece.levels, scaled[:, piece.outputs], geometry.stride, geometry.padding,
            geometry.dilation, piece.groups,
        )  # fmt: skip
    return total.to(gradient.dtype)


def _check(x: Tensor, packed: PackedMatrix, geometry: Geometry) -> None:
    channels = geometry.kernel[0] * geometry.groups
    if x.dtype not in FLOATS:
        raise ArgumentError("x", str(x.dtype), " or ".join(map(str, FLOATS)))
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ArgumentError("x", f"shape {list(x.shape)}", f"[N, {channels}, H, W]")
    if x.device != packed.planes.device:
        raise ArgumentError("x", f"on {x.device}", f"on {packed.planes.device}, as the weights")


def _dtype(x: Tensor) -> torch.dtype:
    """Sums of levels are not scaled yet, which float16 might not hold."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def _pieces(packed: PackedMatrix, dtype: torch.dtype, geometry: Geometry) -> Iterator[_Piece]:
    """Tiles cut where they hold parts of groups."""
    n_inputs = geometry.kernel[0]
    n_outputs = max(1, packed.n_rows // geometry.groups)
    for start, end, values in level_tiles(packed, dtype, compile=compiles(packed)):
        levels = natural_order(values, packed.n_columns).reshape(end - start, *geometry.kernel)
        first = start
        while first < end:
            group = first // n_outputs
            whole = (end - first) // n_outputs if first % n_outputs == 0 else 0
            last = first + whole * n_outputs if whole else min(end, (group + 1) * n_outputs)
            inputs = slice(group * n_inputs, (group + max(1, whole)) * n_inputs)
            yield _Piece(slice(first, last), inputs, max(1, whole), levels[first - start : last - start])
            first = last
