"""Tiles of bfloat16 levels of one plane, made of bits without converting a number.

A level of a supermask is -1, 0 or 1. The upper two bits of the bfloat16 numbers -2 and 2 are its sign and its mask, all
others are zero; taking the mask away again seven bits lower makes 1 of 2. So where signs and masks of every second
column stand side by side in a word of 32 bits, one shift and one mask give two levels that are sixteen columns apart.

Columns of such a tile stand in *pair order*: columns 0 and 16 of the first 32, of the next 32, and so on, then columns
1 and 17 of each, up to 15 and 31. Activations are brought into the same order once a call.

On a CUDA device levels stay twice what they are, and half of the activations is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiler
from .packing import PackedMatrix
from .tiles import Tile, buffer, plane_steps, planned, tile_bytes

# Every second bit of a word, the others, and in both halves of a word: sign and mask, the mask alone, the sign alone.
ODD, EVEN, PAIRS, MASKS, SIGNS = -0x55555556, 0x55555555, -0x3FFF4000, 0x40004000, -0x7FFF8000


def fits(packed: PackedMatrix, dtype: torch.dtype) -> bool:
    """Whether levels of a matrix can be made so."""
    return dtype == torch.bfloat16 and packed.n_magnitude_bits == 1 and packed.offset is None


def pair_order(x: Tensor, n_columns: int, *, compile: bool = False) -> Tensor:
    """Columns [B, K] padded with zeros to K' and brought into pair order: [B, K'], contiguous, valid until the next."""
    if x.shape[1] != n_columns:
        x = F.pad(x, (0, n_columns - x.shape[1]))
    room = buffer(len(x) * n_columns, x.dtype, x.device, use="columns").view(len(x), 16, n_columns // 32, 2)
    pairs = x.reshape(len(x), n_columns // 32, 2, 16)
    order = _order_half if x.is_cuda else _order
    (compiler.compiled(order, room, pairs) if compile else order)(room, pairs)
    return room.view(len(x), n_columns)


def pair_tiles(packed: PackedMatrix, *, compile: bool, n_tile_bytes: int | None = None) -> Iterator[Tile]:
    """All rows of a matrix that :func:`fits`, as bfloat16 levels in pair order, tile by tile, like
    :func:`smask.tiles.tiles`.

    Args:
        packed: The matrix.
        compile: Whether to compile what fills a tile.
        n_tile_bytes: Size of the buffer, by default what suits the device.

    Yields:
        Levels -1, 0 and 1, on a CUDA device twice that, without scale; a tile is valid until the next one is asked for.
    """
    n_tile_bytes = n_tile_bytes or tile_bytes(packed.planes.device)
    fill = _fill_twice if packed.planes.is_cuda else _fill
    steps = partial(plane_steps, packed, fill, torch.bfloat16, compile=compile, n_tile_bytes=n_tile_bytes)
    for step in planned(packed, ("pairs", compile, n_tile_bytes), steps):
        step.fill()
        yield step.tile


def _order(out: Tensor, x: Tensor) -> None:
    out.copy_(x.permute(0, 3, 1, 2))


def _fill(out: Tensor, signs: Tensor, mask: Tensor) -> None:
    """Pairs of levels int32 [R, 8, 2, W] from words int32 [R, W] of signs, a set bit being -1, and of masks."""
    # From the lowest column to the highest, which a shift of nothing leaves at the top.
    shift = torch.arange(14, -1, -2, dtype=torch.int32, device=out.device)[None, :, None]
    even = (signs << 1 & ODD) | (mask & EVEN)
    odd = (signs & ODD) | (mask >> 1 & EVEN)
    for index, word in enumerate((even, odd)):
        twice = word[:, None] << shift & PAIRS
        torch.sub(twice, (twice & MASKS) >> 7, out=out[:, :, index])


def _order_half(out: Tensor, x: Tensor) -> None:
    """As :func:`_order`, half of it: exact but for numbers that are nearly zero."""
    out.copy_(x.permute(0, 3, 1, 2) * 0.5)


def _fill_twice(out: Tensor, signs: Tensor, mask: Tensor) -> None:
    """As :func:`_fill`, twice that, by one store of all: sixteen stores became as many choices for every number."""
    shift = torch.arange(15, -1, -1, dtype=torch.int32, device=out.device)[None, :, None]
    twice = (signs[:, None] << shift & SIGNS) | ((mask[:, None] << shift) >> 1 & MASKS)
    out.copy_(twice.view_as(out))
