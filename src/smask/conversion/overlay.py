"""Tensors of a checkpoint over those of another: what each is compared with, and what is left to be coded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import bitdifference
from ..integrity import NAME_OF_DTYPE, raw_bytes
from ..origins import Base, fits, origin_problem
from ..overlays import equal_bits, mask_of


class Overlay:
    """A base for one checkpoint.

    Args:
        base: The base.
        prefix: What a wrapper put before all names of the checkpoint; the base is looked at without.
    """

    def __init__(self, base: Base, prefix: str) -> None:
        self.base = base
        self._prefix = prefix

    def over(self, name: str, shape: tuple[int, ...], dtype: str) -> tuple[str, Tensor] | None:
        """What a record says of the tensor of the base, and that tensor; None where there is none that fits."""
        origin = name.removeprefix(self._prefix)
        if not fits(shape, dtype, self.base.entry(origin)):
            return None
        return "" if origin == name else origin, self.base.tensor(origin)

    def rounded(self, tensor: Tensor, origin: Tensor, n_mantissa: int, nearest: Tensor) -> Tensor:
        """A small tensor with so many bits after the leading one exact, whose difference from the base is short.

        Args:
            tensor, origin: Floating, of the same shape and dtype.
            n_mantissa: Number of these bits.
            nearest: The nearest numbers of so many bits, taken where differences cannot be dropped so (near zero).
        """
        n_all = round(-math.log2(torch.finfo(tensor.dtype).eps))
        values, old = (raw_bytes(part).numpy().reshape(-1, part.element_size()) for part in (tensor, origin))
        folded = bitdifference.coarse(bitdifference.difference(values, old), max(0, n_all - n_mantissa))
        found = torch.from_numpy(bitdifference.restored(folded, old)).view(tensor.dtype).reshape(tensor.shape)
        near = (found.double() - tensor.double()).abs() <= tensor.double().abs() * 2.0**-n_mantissa
        return torch.where(near, found, nearest)

    def gives(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor is that of the base, or a mask of it, to the bit."""
        found = self.over(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype])
        return found is not None and (equal_bits(tensor, found[1]) or mask_of(tensor, found[1], found[0]) is not None)

    def near(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """As :meth:`over`, for a tensor to be rounded: one that is nearer to that of the base than to zero."""
        found = self.over(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype])
        if found is None or origin_problem(found[1]) or not bool(found[1].to(tensor.dtype).isfinite().all()):
            return None
        energy = tensor.float().square().sum(dtype=torch.float64)
        left = (tensor.float() - found[1].float()).square().sum(dtype=torch.float64)
        return found if bool(left < energy) else None
