"""Small parameters (scales, offsets, biases, norms, counters) of all tensors as byte planes. No torch.

Byte plane b holds byte b (0 the least significant) of every value whose dtype has more than b bytes, in record order;
the highest plane comes first in the file. Signs and exponents of all layers so meet in one blob, which compresses,
and the low mantissa bytes in another, which does not and stays raw. A byte plane of n bytes is a section of 8n bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .bitcoding import Bits, Packed


def byte_planes(values: Sequence[Packed]) -> list[Bits]:
    """Byte planes, highest first.

    Args:
        values: For each parameter its little-endian bytes, uint8 [n_values, n_bytes of the dtype].
    """
    widest = max((value.shape[1] for value in values if len(value)), default=0)
    planes = []
    for byte in reversed(range(widest)):
        plane = np.concatenate([value[:, byte] for value in values if value.shape[1] > byte])
        planes.append(Bits(plane, 8 * len(plane)))
    return planes


def plane_lengths(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of each byte plane, highest first, from (n_values, n_bytes of the dtype) of each parameter."""
    widest = max((n_bytes for n, n_bytes in shapes if n), default=0)
    return [sum(n for n, n_bytes in shapes if n_bytes > byte) for byte in reversed(range(widest))]


def values_from_planes(planes: Sequence[Bits], shapes: Sequence[tuple[int, int]]) -> list[Packed]:
    """Inverse of :func:`byte_planes`: uint8 [n_values, n_bytes] for each parameter."""
    values = [np.empty(shape, np.uint8) for shape in shapes]
    for byte, plane in zip(reversed(range(len(planes))), planes, strict=True):
        holders = [value for value in values if value.shape[1] > byte]
        ends = np.cumsum([0] + [len(value) for value in holders])
        for value, (start, end) in zip(holders, pairwise(ends), strict=True):
            value[:, byte] = plane.packed[start:end]
    return values
