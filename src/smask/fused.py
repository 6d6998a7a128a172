"""Products of few rows in one loop: bits become levels, are multiplied and added, and nothing is written but sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiler
from .packing import PackedMatrix

# Every second bit of a word, the others, and the two bits of a float32 that make it -2, -0, 0 or 2 if the rest is 0.
ODD, EVEN, SIGNED_TWO = -0x55555556, 0x55555555, -0x40000000
# Sums side by side, so that an addition need not wait for the one before: on Zen 4 two take an eighth longer than four,
# eight no less. A CUDA device has other warps to go on with.
N_CHAINS = 4
# Rows of x that share the levels made of bits, on a CUDA device and on processors with AMX, where four rows of 4096 x
# 4096 took 1.1 ms by twos, 1.6 one by one. Inductor's loop over four spills its registers: eight rows of 8192 x 8192
# took 66 microseconds on an H200 by twos, 934 by fours.
N_TOGETHER = 2


def fused(x: Tensor, packed: PackedMatrix, bias: Tensor | None) -> Tensor:
    """One compiled loop over the words of a row, 32 columns each."""
    n_words, on_cuda = packed.planes.shape[2] // 4, x.device.type == "cuda"
    padded = x if x.shape[1] == 32 * n_words else F.pad(x, (0, 32 * n_words - x.shape[1]))
    columns = torch.empty((len(x), 8, 4, n_words), dtype=torch.float32, device=x.device)
    slabs = padded.view(len(x), n_words, 4, 8)
    (compiler.compiled(_slabs, columns, slabs) if on_cuda else _slabs)(columns, slabs)
    planes = packed.planes.view(torch.int32)
    # A product with a level is exact, so that one rounding instead of two changes nothing.
    y = x.new_empty((len(x), packed.n_rows), dtype=x.dtype if bias is None else torch.float32)
    # Elsewhere one row of x stays in the first-level cache, and its sums in registers: rows take turns.
    outs, n_together = y.unbind(), N_TOGETHER if on_cuda or torch.cpu._is_amx_tile_supported() else 1
    for start in range(0, len(x), n_together):
        rows = slice(start, start + n_together)
        # On a CUDA device one loop for everything spills its registers too.
        work = compiler.compiled(
            _fused, columns[rows], planes, packed.scale, *outs[rows], contract=True, one_loop=not on_cuda
        )
        work(columns[rows], planes, packed.scale, *outs[rows])
    return y if bias is None else y.add_(bias).to(x.dtype)


def _slabs(out: Tensor, x: Tensor) -> None:
    """By bits of a byte, bytes of a word and words; halved, since levels are doubled and sums must not overflow."""
    out.copy_(x.permute(0, 3, 2, 1)).mul_(0.5)


def _fused(columns: Tensor, planes: Tensor, scale: Tensor, *outs: Tensor) -> None:
    """Each of B outputs [R] from halved columns, float32 [B, 8, 4, W], slab [k, b] holding bit 8 b + k of the words
    int32 [N, R, W].

    A float32 whose sign is set, and of its other bits only the highest, is -2; so a sign and a bit of a magnitude side
    by side are a weight, twice over, and nothing has to be converted.
    """
    n_chains = 1 if planes.is_cuda else N_CHAINS
    sign, lower = planes[0], None
    magnitudes = []
    for plane in reversed(planes[1:].unbind()):  # a negative number is turned by flipping all above its lowest one
        magnitudes.append(plane if lower is None else plane ^ (sign & lower))
        lower = plane if lower is None else lower | plane
    totals: list[Tensor | None] = [None] * len(outs)
    for plane in reversed(magnitudes):
        pairs = (sign & ODD) | (plane >> 1 & EVEN), (sign << 1 & ODD) | (plane & EVEN)
        sums: list[list[Tensor | None]] = [[None] * n_chains for _ in outs]
        for index in range(32):
            bit = 31 - index
            level = (pairs[index & 1] << (index & 30) & SIGNED_TWO).view(torch.float32)
            for row, chains in enumerate(sums):
                term, last = level * columns[row, bit & 7, bit >> 3], chains[index % n_chains]
                chains[index % n_chains] = term if last is None else last + term
        for row, chains in enumerate(sums):
            of_plane, last = _in_pairs(chains), totals[row]
            totals[row] = of_plane if last is None else 2 * last + of_plane
    for out, total in zip(outs, totals, strict=True):
        out.copy_(total.sum(-1) * scale)  # type: ignore[union-attr]


def _in_pairs(sums: Sequence[Any]) -> Any:
    """The sum of one, two or four."""
    while len(sums) > 1:
        sums = [one + other for one, other in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]
