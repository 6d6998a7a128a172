"""Coded tensors in memory: planes over a base, with scales and offsets in the range where the formula is exact."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-64, 2.0**64
SMALLEST_OFFSET, LARGEST_OFFSET = 2.0**-40, 2.0**16


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """A tensor as planes over a seeded base.

    Attributes:
        shape: Dimensions; n is their product, C is ``shape[0]``.
        base: Kind of the base; ``file`` for the values of ``origin``.
        stream: Stream of the generator.
        planes: Packed bits, uint8 [ceil(n / 8)] each, most significant plane first, on the CPU.
        flip: Packed flip bits, uint8 [ceil(n / 8)], zero where the weight is zero, or None.
        scale: float32 [1] or [C].
        offset: float32 [1] or [C], or None for 0.
        dtype: Floating dtype of the weights.
        of: Name of the tensor of another checkpoint that this one is over, empty for its own name; None for none.
        origin: That tensor, floating [``shape``], finite in binary32. Weights are added to it, or, with the base
            ``file``, it is masked.
        trellis: Whether the magnitudes are those of a trellis, whose indices take a plane less in a file.
    """

    shape: tuple[int, ...]
    stream: int
    planes: tuple[Tensor, ...]
    scale: Tensor
    base: str = "signed"
    flip: Tensor | None = None
    offset: Tensor | None = None
    dtype: torch.dtype = torch.float32
    of: str | None = None
    origin: Tensor | None = None
    trellis: bool = False

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def n_bits(self) -> int:
        """Bits of its planes, and of flips where a weight is not zero, before they are coded."""
        n_bits = len(self.planes) * self.n_weights
        if self.flip is None:
            return n_bits
        kept = functools.reduce(torch.bitwise_or, self.planes)
        return n_bits + int(np.bitwise_count(kept.numpy()).sum(dtype=np.int64))

    @property
    def n_channels(self) -> int:
        """Channels of the scale: 1 or ``shape[0]``."""
        return max(len(self.scale), 1 if self.offset is None else len(self.offset))


def parameter_problem(coded: CodedTensor) -> tuple[str, float, str] | None:
    """The first scale or offset outside the range in which the formula is exact, as (parameter, got, want)."""
    good = _within(coded.scale, SMALLEST_SCALE, LARGEST_SCALE)
    if not bool(good.all()):
        return "scale", float(coded.scale[~good][0]), "0 or a magnitude in [2**-64, 2**64]"
    if coded.offset is not None:
        good = _within(coded.offset, SMALLEST_OFFSET, LARGEST_OFFSET)
        if not bool(good.all()):
            return "offset", float(coded.offset[~good][0]), "0 or a magnitude in [2**-40, 2**16]"
    return None


def _within(values: Tensor, smallest: float, largest: float) -> Tensor:
    """Where a parameter is 0 or has such a magnitude; by its bits, as subnormal numbers may compare as 0."""
    is_zero = values.view(torch.int32) & 0x7FFFFFFF == 0
    return is_zero | ((values.abs() >= smallest) & (values.abs() <= largest))
