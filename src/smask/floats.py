"""Small parameters (scales, offsets, biases, norms, counters) of all tensors as byte planes. No torch.

Byte plane b holds byte b (0 the least significant) of every value whose dtype has more than b bytes, in record order;
the highest plane comes first in the file. Signs and exponents of all layers so meet in one blob, which compresses,
and the low mantissa bytes in another, which mostly does not. A byte plane of n bytes is a section of 8n bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from . import bitcoding
from .bitcoding import Bits, Packed
from .bytemodel import MOST_BYTES, Bytes
from .counting import Integers


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


class Higher:
    """What the byte planes so far say of all values, as long as planes are short: those below one are no shorter.

    Args:
        shapes: (n_values, n_bytes of the dtype) of each parameter.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self._shapes = [shape for shape in shapes if shape[0]]
        self._values: dict[int, Integers] = {}

    def context(self, byte: int) -> Callable[[], Bytes] | None:
        """Makes what is known before a plane; None where it is too long for the coding ``range``."""
        values = self._in_plane(byte)
        if values is None:
            return None
        ends = np.cumsum([0] + [len(value) for value in values])

        def known() -> Bytes:
            partners = [np.full(len(value), -1) for value in values]
            for index, (before, value) in enumerate(pairwise(values), 1):
                if len(before) == len(value):
                    partners[index] = np.arange(ends[index - 1], ends[index])
            return Bytes(np.concatenate([np.zeros(0, np.int64), *values]), np.concatenate([[-1], *partners])[1:])

        return known

    def see(self, byte: int, plane: Packed) -> None:
        """Takes the bytes of a plane."""
        start = 0
        for value in self._in_plane(byte) or ():
            own = plane[start : start + len(value)]
            start += len(value)
            value[:] = np.where(value < 0, own, (value << 8) + own)

    def _in_plane(self, byte: int) -> list[Integers] | None:
        """What is known of the values that have a byte in a plane; nothing is kept of those of a long one."""
        places = [place for place, (_, width) in enumerate(self._shapes) if width > byte]
        if sum(self._shapes[place][0] for place in places) > MOST_BYTES:
            return None
        for place in places:
            if place not in self._values:
                self._values[place] = np.full(self._shapes[place][0], -1)
        return [self._values[place] for place in places]


def encode(values: Sequence[Packed], *, ranged: bool = True) -> list[tuple[str, bytes]]:
    """Coding and blob of every byte plane of parameters as in :func:`byte_planes`, highest first.

    Args:
        values: Little-endian bytes of each parameter, uint8 [n_values, n_bytes of the dtype].
        ranged: Whether short ones may have the coding ``range``.
    """
    planes, higher, blobs = byte_planes(values), Higher([value.shape for value in values]), []
    for byte, plane in zip(reversed(range(len(planes))), planes, strict=True):
        blobs.append(bitcoding.encode(plane, bytewise=True, context=higher.context(byte) if ranged else None))
        higher.see(byte, plane.packed)
    return blobs


def decode(blobs: Iterable[tuple[str, bytes | memoryview]], shapes: Sequence[tuple[int, int]]) -> list[Bits]:
    """Byte planes, highest first, from coding and blob of each; all else that ``blobs`` gives is left to others.

    Raises:
        FormatError, UnsupportedError: As of :func:`smask.bitcoding.decode`.
    """
    lengths, higher, planes = plane_lengths(shapes), Higher(shapes), list[Bits]()
    for byte, n_bytes, (coding, blob) in zip(reversed(range(len(lengths))), lengths, blobs, strict=False):
        where, context = f"byte plane {byte}", higher.context(byte)
        planes.append(bitcoding.decode(blob, coding, n_bits=8 * n_bytes, where=where, context=context))
        higher.see(byte, planes[-1].packed)
    return planes
