"""Which form a tensor takes over one of the base when every bit is to be kept.

=================================== ===========================================================
the tensor is                       it is stored as
=================================== ===========================================================
that of the base                    a record and nothing else
that of the base, some weights zero a mask of the base; with flips where some have changed sign
or with the other sign
anything else of the same dtype     a difference of bits, where that is shorter than the values
=================================== ===========================================================
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import bitdifference, integrity
from .coded import CodedTensor
from .origins import origin_problem
from .reconstruction import reconstruct
from .stored_tensors import smallest_exact


def equal_bits(tensor: Tensor, origin: Tensor) -> bool:
    """Whether two tensors are the same, NaNs and signs of zeros included."""
    same_kind = tensor.dtype == origin.dtype and tensor.shape == origin.shape
    return same_kind and torch.equal(integrity.raw_bytes(tensor), integrity.raw_bytes(origin))


def mask_of(tensor: Tensor, origin: Tensor, of: str) -> CodedTensor | None:
    """The tensor as a mask of the base, or None where it is none to the bit.

    Args:
        tensor: Floating, at least one dimension.
        origin: Tensor of the base, of the same shape.
        of: Its name, for the record.
    """
    if not tensor.dim() or not tensor.is_floating_point() or origin_problem(origin):
        return None
    kept, flipped = tensor != 0, tensor == -origin
    if not bool((~kept | flipped | (tensor == origin)).all()):
        return None
    flips = (kept & flipped).flatten().numpy()
    coded = CodedTensor(
        tuple(tensor.shape), 0, (_packed(kept.flatten().numpy()),), torch.ones(1, dtype=torch.float32), base="file",
        flip=_packed(flips) if flips.any() else None, dtype=tensor.dtype, of=of, origin=origin,
    )  # fmt: skip
    return coded if equal_bits(reconstruct(coded, 0), tensor) else None


def difference_pays(tensor: Tensor, folded: np.ndarray) -> bool:
    """Whether a difference of bits takes fewer bytes than the values in their narrowest form."""
    stored = smallest_exact(tensor)
    values = integrity.raw_bytes(stored).numpy().reshape(-1, stored.element_size())
    if len(values) < bitdifference.N_FOR_ENTROPY:
        return 8 * int(np.count_nonzero(folded)) < 7 * int(np.count_nonzero(values))
    return bitdifference.n_bytes_estimated(folded) < bitdifference.n_bytes_estimated(values)


def _packed(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(np.packbits(bits, bitorder="little"))
