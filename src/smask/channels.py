"""Output channels of a coded tensor: which have bits at all, and how many of their weights are kept. No torch.

A channel whose scale is zero is silent: its weights are zero whatever their bits, so that it has none in any section.
Sections, their lengths and their contexts are those of the tensor without it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bitcoding import Bits, Packed
from .counting import Integers
from .planes import deposit, extract
from .rangecoding import Booleans
from .records import Record

# Bits that are worked on at a time.
N_CHUNK_BITS = 1 << 17


@dataclass(frozen=True, eq=False)
class Heard:
    """The channels of a tensor that have bits.

    Attributes:
        shape: Of the tensor without the others.
        marks: Packed bits uint8 [ceil(n_weights / 8)] of all weights, ones for those of these channels; None for all.
    """

    shape: tuple[int, ...]
    marks: Packed | None

    @classmethod
    def of(cls, record: Record, parameters: Sequence[Packed]) -> Heard:
        """Those of a record with planes.

        Args:
            record: Of a coded tensor.
            parameters: Stored bytes of its scale, and of what follows it, uint8 [n, n_bytes] each.
        """
        if not record.has_levels or record.trellis or record.scale is None or record.scale.axis != "channel":
            return cls(record.shape, None)
        scale = parameters[0]
        heard = (scale[:, :-1] != 0).any(1) | (scale[:, -1] & 0x7F != 0)  # a sign alone is none
        if heard.all():
            return cls(record.shape, None)
        return cls((int(np.count_nonzero(heard)), *record.shape[1:]), _marks(heard, math.prod(record.shape[1:])))

    @property
    def n_weights(self) -> int:
        """Number of weights that have bits."""
        return math.prod(self.shape)

    def taken(self, packed: Packed) -> Packed:
        """Packed bits of these channels alone, uint8 [ceil(n / 8)], from those of all."""
        return packed if self.marks is None else extract(packed, self.marks).packed

    def spread(self, packed: Packed) -> Packed:
        """Packed bits of all channels, zeros in the others, from those of these."""
        return packed if self.marks is None else deposit(Bits(packed, self.n_weights), self.marks)


def _marks(rows: Booleans, n_row: int) -> Packed:
    """Packed bits of a matrix [C, n_row] whose rows are all ones or all zeros."""
    return np.concatenate(
        [np.zeros(0, np.uint8)] +
        [np.packbits(np.repeat(rows[at], n_row), bitorder="little") for at in _pieces(len(rows), n_row)]
    )  # fmt: skip


def kept_of_channels(planes: Sequence[Packed], shape: Sequence[int]) -> Integers:
    """Weights of each output channel, the first dimension, that have a bit in a plane: int64 [C].

    Args:
        planes: Packed bits uint8 [ceil(n_weights / 8)], one plane or more.
        shape: Of the tensor, [C, ...].
    """
    n_rows, n_row = shape[0] if shape else 1, math.prod(shape[1:])
    found = np.zeros(n_rows, np.int64)
    for at in _pieces(n_rows, n_row):
        first, last = at.start * n_row // 8, -(-at.stop * n_row // 8)
        kept = functools.reduce(np.bitwise_or, [plane[first:last] for plane in planes])
        bits = np.unpackbits(kept, count=(at.stop - at.start) * n_row, bitorder="little")
        found[at] = bits.reshape(-1, n_row).sum(1, dtype=np.int64)
    return found


def _pieces(n_rows: int, n_row: int) -> list[slice]:
    """Rows that are worked on together: eight begin with a byte, whatever their length."""
    step = 8 * max(1, N_CHUNK_BITS // max(1, 8 * n_row))
    return [slice(first, min(first + step, n_rows)) for first in range(0, n_rows if n_row else 0, step)]
