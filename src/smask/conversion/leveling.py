"""One tensor as levels: what of it goes into a file, and what decoding will give."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..coded import CodedTensor
from ..draft import Draft
from ..reconstruction import reconstruct
from .feedback import Moments
from .plan import grid
from .rounding import Floats, Levels, centre

# Weights whose squares are taken at a time.
N_SQUARED = 1 << 16
# How many times worse an error along the weights is than as much noise across them, see Leveled.raised.
ALONG = 8
# Scales that differ by less from those of other tensors are better alike, which costs fewer bytes.
LEAST_RAISE = 1 / 64


@dataclass(frozen=True, eq=False)
class Leveled:
    """A rounded tensor.

    Attributes:
        levels: int32 [n], signed.
        step, offset: A level k > 0 stands for ``(k - offset) * step``.
        dense: What decoding gives, of the shape and dtype of the tensor.
        near: Name and tensor of the base that the levels are added to, if there is one.
        trellis: Whether the levels are those of a trellis.
    """

    levels: Levels
    step: float
    offset: float
    dense: Tensor
    near: tuple[str, Tensor] | None = None
    trellis: bool = False

    def coded(self) -> CodedTensor:
        """As planes over the base ``one``: flips are then signs, of which more can be foreseen than of random ones."""
        magnitudes = np.abs(self.levels)
        largest = int(magnitudes.max(initial=0))
        # A trellis has a plane more than its indices.
        n_planes = 1 + max(1, ((largest + 1) // 2).bit_length()) if self.trellis else max(1, largest.bit_length())
        packed = [_packed(magnitudes & 1 << plane) for plane in reversed(range(n_planes))]
        flip = _packed(self.levels < 0)
        return CodedTensor(
            tuple(self.dense.shape), 0, tuple(map(torch.from_numpy, packed)),
            torch.tensor([self.step], dtype=torch.float32), "one", flip=torch.from_numpy(flip),
            offset=torch.tensor([self.offset], dtype=torch.float32) if self.offset else None, dtype=self.dense.dtype,
            of=self.near[0] if self.near else None, origin=self.near[1] if self.near else None, trellis=self.trellis,
        )  # fmt: skip

    def store(self, draft: Draft, name: str) -> None:
        """Puts the tensor into a file."""
        if self.near is not None and self.dense is self.near[1]:
            draft.add(name, self.dense, self.near)
        else:
            draft.add_coded(name, self.dense, self.coded())

    def raised(self, tensor: Tensor, moments: Moments | None = None) -> Leveled:
        """The same levels on a scale that gives back most of the length that rounding took.

        Values with the least squared error are shorter than the weights. That is no noise: outputs of all layers
        shrink together, and what depth adds up of noise in squares it adds up of this as it is. With a part ``g`` of
        the tensor left along itself and ``h`` of its energy across, the scale ``c`` has the least of
        ``ALONG * (1 - c * g)**2 + c**2 * h``.

        Args:
            tensor: As in the checkpoint.
            moments: float64 [groups, columns, columns] of the inputs: lengths are then those of outputs.
        """
        before, after = (values.detach().reshape(-1) for values in (tensor, self.dense))
        if moments is not None:
            # The root of the moments would do on both sides; whole on one it gives the same products.
            rows = (moments.shape[0], -1, moments.shape[1])
            seen = [torch.from_numpy(values.double().numpy().reshape(rows) @ moments) for values in (before, after)]
            pairs = [(before, seen[0].reshape(-1)), (after, seen[0].reshape(-1)), (after, seen[1].reshape(-1))]
        else:
            pairs = [(before, before), (before, after), (after, after)]
        length, along, energy = (_product(one, other) for one, other in pairs)
        if not (along > 0 and length > 0 and math.isfinite(length + energy)):
            return self
        along, across = along / length, max(0.0, energy / length - (along / length) ** 2)
        step = grid(self.step * ALONG * along / (ALONG * along * along + across))
        if abs(step / self.step - 1) < LEAST_RAISE:
            return self
        dense = _dense(self.levels, self.offset, step, tensor)
        return replace(self, step=step, dense=dense) if bool(dense.isfinite().all()) else self

    def error(self, tensor: Tensor) -> float:
        """Sum of the squared differences from the tensor as it was."""
        before, after = (values.detach().reshape(-1) for values in (tensor, self.dense))
        pieces = zip(torch.split(before, N_SQUARED), torch.split(after, N_SQUARED), strict=True)
        return math.fsum(squared_length((one.float() - other.float()).numpy()) for one, other in pieces)


def leveled(
    tensor: Tensor, scaled: Floats, levels: Levels, step: float, near: tuple[str, Tensor] | None = None, *,
    trellis: bool = False,
) -> Leveled:  # fmt: skip
    """A tensor of which every weight has its level.

    Args:
        tensor: As in the checkpoint.
        scaled: float32 [n_windows, n_window], its weights in steps.
        levels: int32 of the same shape.
        step: That float16 or bfloat16 holds exactly.
        near: Name and tensor of the base from which ``scaled`` is the difference.
        trellis: Whether the levels are those of a trellis; the dtype then holds more than the tensor has, see
            :func:`has_room`.
    """
    offset = centre(np.abs(scaled), np.abs(levels))
    levels = levels.reshape(-1)
    while True:
        if near is not None and near[1].dtype == tensor.dtype and not levels.any():
            return Leveled(levels, step, offset, near[1], near)
        found = Leveled(levels, step, offset, tensor, near, trellis)
        dense = _dense(levels, offset, step, tensor) if near is None else reconstruct(found.coded(), 0)
        beyond = dense.isinf().reshape(-1)
        if not bool(beyond.any()):
            return replace(found, dense=dense)
        # Rounded up, a weight near the end of float16 is infinite: one level less.
        levels = levels - torch.where(beyond, dense.reshape(-1).sign(), 0).numpy().astype(np.int32)


def has_room(tensor: Tensor, step: float) -> bool:
    """Whether the dtype of a tensor holds whatever its values are rounded to; all but float16 always do."""
    if tensor.dtype != torch.float16:
        return True
    return float(tensor.abs().max()) + 4 * step <= torch.finfo(tensor.dtype).max


def _dense(levels: Levels, offset: float, step: float, like: Tensor) -> Tensor:
    """The formula of section 12, a sign being exact: round(round(level) * step), nothing where the level is 0."""
    values = np.abs(levels).astype(np.float32)
    values -= np.float32(offset)
    values *= np.float32(step)
    np.copysign(values, levels.astype(np.float32), out=values)
    values[levels == 0] = 0
    return torch.from_numpy(values).reshape(like.shape).to(like.dtype)


def windows(tensor: Tensor) -> Floats:
    """Weights as float32 [n_windows, n_window], not shared with the tensor; of a matrix a window is one weight."""
    n_window = math.prod(tensor.shape[2:]) if tensor.dim() > 2 else 1
    array: Floats = tensor.detach().to(torch.float32, copy=True).reshape(-1, n_window).numpy()
    return array


def squared_length(values: Floats) -> float:
    """Sum of squares, float32 [n], in an order that depends on nothing."""
    pieces = (values[start : start + N_SQUARED].astype(np.float64) for start in range(0, len(values), N_SQUARED))
    return math.fsum(float(np.square(piece, out=piece).sum()) for piece in pieces)


def _product(one: Tensor, other: Tensor) -> float:
    """Sum of products in float64, in an order that depends on nothing."""
    pieces = zip(torch.split(one, N_SQUARED), torch.split(other, N_SQUARED), strict=True)
    return math.fsum(float((left.double().numpy() * right.double().numpy()).sum()) for left, right in pieces)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(bool), bitorder="little")
