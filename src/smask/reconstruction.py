"""Coded tensors in memory and the formula that turns them into weights, exact to the bit.

    q[i] = sum_p 2**p * mask_p[i]
    W[i] = 0                                                             where q[i] = 0
    W[i] = (-1)**flip[i] * round(round(scale[c] * level) * base[i])      elsewhere, level = round(q[i] - offset[c])
    a zero W[i] is +0

Over another checkpoint, whose tensor of the same shape is ``origin``, that is the base (base ``file``), or W is added
to it; numbers below 2**-126 in magnitude then count as 0, in the origin and in the result.

All operations are IEEE 754 binary32, rounded to nearest even, in this order; ``c`` is the channel of i (0 for one
scale a tensor). The result is then rounded to the dtype of the tensor. Scales lie in {0} and [2**-64, 2**64] in
magnitude, so that no product is subnormal and a processor set to flush subnormals gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import bases, fills, philox
from .coded import CodedTensor
from .errors import ArgumentError
from .fills import N_CHUNK, bits_of, flushed


def reconstruct_reference(coded: CodedTensor, seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Plain and slow :func:`reconstruct`: the formula on whole tensors."""
    n = coded.n_weights
    q = torch.zeros(n, dtype=torch.int64, device="cpu")
    for plane in coded.planes:
        q = 2 * q + bits_of(plane, n)
    channel = torch.arange(n, device="cpu") // max(1, n // max(1, coded.shape[0]))
    scale = coded.scale if len(coded.scale) == 1 else coded.scale[channel]
    level = q.to(torch.float32)
    if coded.offset is not None:
        level = level - (coded.offset if len(coded.offset) == 1 else coded.offset[channel])
    origin = None if coded.origin is None else flushed(coded.origin.flatten().to(torch.float32))
    if coded.base == "file":
        assert origin is not None
        weights = (scale * level) * origin
    else:
        weights = (scale * level) * bases.base_weights(coded.base, seed, stream=coded.stream, start=0, n_weights=n)
    if coded.flip is not None:
        weights = torch.where(bits_of(coded.flip, n).bool(), -weights, weights)
    weights = torch.where(q == 0, 0.0, weights)
    if origin is not None:
        weights = flushed(weights if coded.base == "file" else origin + weights)
    weights = weights + 0.0
    return weights.reshape(coded.shape).to(coded.dtype).to(device)


def reconstruct(
    coded: CodedTensor, seed: int, *, device: torch.device | str = "cpu", out: Tensor | None = None
) -> Tensor:
    """Weights of a coded tensor.

    Args:
        coded: The tensor; its scales and offsets have passed :func:`smask.coded.parameter_problem`.
        seed: Seed of the file.
        device: Where the weights are wanted; they are computed there.
        out: Contiguous tensor of the same dtype and shape to write into, on any device; ``device`` is then its own.

    Returns:
        ``coded.dtype`` [``coded.shape``], the same bits on every device and with any number of threads.

    Raises:
        ArgumentError: ``out`` has another shape or dtype, or is not contiguous.
    """
    if out is not None:
        if out.shape != coded.shape or out.dtype != coded.dtype or not out.is_contiguous():
            want = f"a contiguous tensor of {coded.dtype} {list(coded.shape)}"
            raise ArgumentError("out", f"{out.dtype} {list(out.shape)}, strides {out.stride()}", want)
        device = out.device
    device = torch.device(device)
    philox.self_test(device)
    if out is not None and coded.dtype == torch.float32:
        weights = out.detach().view(-1)
    else:
        weights = torch.empty(coded.n_weights, dtype=torch.float32, device=device)
    fills.fill_of(coded)(coded, seed, weights)
    if coded.origin is not None and coded.base != "file":
        _add_origin(coded, weights)
    if out is None:
        return weights.view(coded.shape).to(coded.dtype)
    if coded.dtype != torch.float32:
        out.detach().copy_(weights.view(coded.shape))
    return out


def _add_origin(coded: CodedTensor, weights: Tensor) -> None:
    """Weights over those of the base, in place and chunk by chunk."""
    assert coded.origin is not None
    origin = coded.origin.flatten()
    for start in range(0, len(weights), N_CHUNK):
        piece = weights[start : start + N_CHUNK]
        piece += flushed(origin[start : start + N_CHUNK].to(piece.device, torch.float32))
        piece.copy_(flushed(piece)).add_(0.0)
