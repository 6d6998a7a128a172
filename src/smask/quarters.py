"""Products of float8 numbers on tensor cores: levels of one plane made of bits, activations in parts that add up.

A level of a supermask is -1, 0 or 1. The upper two bits of the float8 numbers -2 and 2 (``e4m3``, four bits of
significand) are its sign and its mask, all others are zero: a shift and a mask of a word give four levels, and a tile
of them is half as large as one of bfloat16. Columns of a tile stand in bit order, see :mod:`smask.tiles`.

Every row of activations is brought to below 256 by a power of two and rounded to float8; what is left is rounded again,
16 times as large, and so on. Two parts hold a bfloat16 number exactly when it is at least 2**-13 of the largest of its
row, and smaller ones to within 2**-21 of that; three hold one of float16. The parts of all rows stand one below the
other in one product, whose sums are added in float32. Before that, tensor cores of Hopper add up products with some 14
bits (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiler
from .fixedpoint import recurs
from .packing import PackedMatrix
from .tiles import Tile, plane_steps, planned

# Parts of a number of activations.
N_PARTS = {torch.bfloat16: 2, torch.float16: 3}
# On an H200 smaller tiles were no faster to fill or to multiply, and each is two launches.
N_TILE_BYTES = 1 << 26
# What float8 products want their rows and columns to be a multiple of.
N_UNIT = 16
# Rows of a product at least: on an H200 it took 21 microseconds with as many and 22 with 128; fewer were not tried.
N_LEAST = 32
# Mask and sign of four levels in a word.
MASKS, SIGNS = 0x40404040, -0x7F7F7F80


def refuses(x: Tensor, packed: PackedMatrix) -> str:
    """Why a product cannot be made so, or nothing."""
    if packed.n_magnitude_bits > 1 or packed.offset is not None:
        return "several planes or an offset"
    if x.dtype not in N_PARTS:
        return str(x.dtype)
    return "" if _available(x.device) else f"no float8 products on {x.device.type}"


def float8(x: Tensor, packed: PackedMatrix, bias: Tensor | None, *, compile: bool) -> Tensor:
    """Parts of x times tiles of levels, [B, R] from [B, K]."""
    n, n_columns, n_parts = len(x), 8 * packed.planes.shape[2], N_PARTS[x.dtype]
    if x.shape[1] != n_columns:
        x = F.pad(x, (0, n_columns - x.shape[1]))
    once = compile and recurs(n)
    # Rows below the parts may be anything: nobody looks at their sums.
    parts = x.new_empty((max(n_parts * n, N_LEAST), n_columns), dtype=torch.float8_e4m3fn)
    unit, n_infinite = (torch.empty(n, dtype=torch.float32, device=x.device) for _ in range(2))
    slabs = parts[: n_parts * n].view(n_parts, n, 8, n_columns // 32, 4).unbind()
    arguments = (x.reshape(n, n_columns // 32, 4, 8), unit, n_infinite, *slabs)
    (compiler.compiled(_divide, *arguments) if once else _divide)(*arguments)
    y, one = x.new_empty(n, packed.n_rows), torch.ones((), dtype=torch.float32, device=x.device)
    for start, end, levels in quarter_tiles(packed, compile=compile):
        # Without the fast accumulation sums go on in float32 now and then, which took no longer.
        sums = torch._scaled_mm(parts, levels.t(), one, one, out_dtype=torch.float32, use_fast_accum=False)
        scale = packed.scale if len(packed.scale) == 1 else packed.scale[start:end]
        of_parts = sums[: n_parts * n, : end - start].view(n_parts, n, -1).unbind()
        head = (y[:, start:end], unit, n_infinite, scale)
        joined = (*head, *of_parts) if bias is None else (*head, bias[start:end], *of_parts)
        work = _join if bias is None else _join_biased
        (compiler.compiled(work, *joined) if once else work)(*joined)
    return y


def quarter_tiles(packed: PackedMatrix, *, compile: bool, n_tile_bytes: int = N_TILE_BYTES) -> Iterator[Tile]:
    """All rows of a matrix of one plane without offset as float8 levels -2, 0 and 2 in bit order, like
    :func:`smask.tiles.tiles`, but for rows below the last, of anything, that make their number a multiple of 16.
    """
    steps = partial(
        plane_steps, packed, _fill, torch.float8_e4m3fn, compile=compile, n_tile_bytes=n_tile_bytes, unit=N_UNIT
    )
    for step in planned(packed, ("quarters", compile, n_tile_bytes), steps):
        step.fill()
        yield step.tile


def _fill(out: Tensor, signs: Tensor, mask: Tensor) -> None:
    """Four levels to a word, int32 [R, 8, 1, W], from words int32 [R, W] of signs, a set bit being -1, and of masks."""
    shift = torch.arange(7, -1, -1, dtype=torch.int32, device=out.device)[None, :, None, None]
    kept = (mask[:, None, None] << shift) >> 1 & MASKS
    # Without its mask a sign would be -0, which is no level but does no harm.
    out.copy_(kept | (signs[:, None, None] << shift & SIGNS))


def _divide(x: Tensor, unit: Tensor, n_infinite: Tensor, *parts: Tensor) -> None:
    """Parts, float8 [B, 8, W, 4] each, of activations [B, W, 4, 8].

    A row with an infinity or a NaN has only the signs of its infinities; how many there are, or NaN, says
    ``n_infinite`` [B], which is 0 for all other rows. ``unit`` [B] is what the first part is multiplied with, halved.
    """
    wide = x.to(torch.float32)
    top = wide.abs().amax((1, 2, 3))
    exponent = top.view(torch.int32) >> 23 & 255
    finite = exponent < 255
    exponent = torch.where(finite, exponent, 127 + 7).clamp(min=9)
    unit.copy_((exponent - 8 << 23).view(torch.float32))
    endless = wide.abs() == math.inf
    n_infinite.copy_(torch.where(top.isnan(), top, endless.to(torch.float32).sum((1, 2, 3))))
    rest = torch.where(finite[:, None, None, None], wide, torch.where(endless, wide.sign(), 0.0))
    rest = (rest * (261 - exponent << 23).view(torch.float32)[:, None, None, None]).permute(0, 3, 1, 2)
    for part in parts:
        rounded = rest.to(part.dtype)
        part.copy_(rounded)
        rest = (rest - rounded.to(torch.float32)) * 16


def _join(y: Tensor, unit: Tensor, n_infinite: Tensor, scale: Tensor, *sums: Tensor) -> None:
    """Products [B, R] from sums of parts times levels, float32 [B, R] each."""
    y.copy_(_products(unit, n_infinite, scale, sums))


def _join_biased(y: Tensor, unit: Tensor, n_infinite: Tensor, scale: Tensor, bias: Tensor, *sums: Tensor) -> None:
    y.copy_(_products(unit, n_infinite, scale, sums) + bias)


def _products(unit: Tensor, n_infinite: Tensor, scale: Tensor, sums: Sequence[Tensor]) -> Tensor:
    total = sums[-1]
    for part in sums[-2::-1]:
        total = total * 0.0625 + part
    # As float arithmetic has it: an infinity times zero, or less another one, is none, else all have one sign.
    n = n_infinite[:, None]
    endless = torch.where(sums[0].abs() == 2 * n, sums[0] * math.inf, math.nan)
    return torch.where(n == 0, total * (unit[:, None] * scale), endless * scale)


@functools.cache
def _available(device: torch.device) -> bool:
    """Whether there are products of float8 on a device; on others but those of CUDA one is tried."""
    if not hasattr(torch, "_scaled_mm"):
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 9)
    one = torch.ones((), dtype=torch.float32, device=device)
    some = torch.zeros(16, 16, dtype=torch.float8_e4m3fn, device=device)
    try:
        torch._scaled_mm(some, some.t(), one, one, out_dtype=torch.float32)
    except (RuntimeError, NotImplementedError):
        return False
    return True
