"""Small floats with fewer bits than they have."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(tensor: Tensor, mantissa: int) -> Tensor:
    """Floats with so many bits after the leading one, ties away from zero."""
    wide = tensor.double()
    fraction, exponent = torch.frexp(wide)
    cut = torch.ldexp((fraction * 2.0 ** (mantissa + 1)).round() / 2.0 ** (mantissa + 1), exponent)
    narrow = cut.to(tensor.dtype)
    return torch.where(narrow.isfinite(), narrow, tensor)
