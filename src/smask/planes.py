"""Ordered bit planes of the magnitudes of a tensor, as embedded sections. No torch.

From the most significant plane down, plane p of a tensor is up to three sections, each over the weights in
row-major order, and each exactly as long as what came before leaves open:

============ ===================================== =====================================
section      one bit for every weight that         meaning of a one
============ ===================================== =====================================
significance was zero in all planes above          its magnitude has bit p
flip         became significant in this plane      the sign of its base is inverted
refinement   was significant in a plane above      its magnitude has bit p
============ ===================================== =====================================

A tensor over stored values has one plane, which says where they are, and after it one section ``byte b`` for each of
their bytes, highest first: byte b of every significant weight, eight bits each.

The order is that of embedded wavelet coders (Shapiro, "Embedded image coding using zerotrees of wavelet
coefficients", IEEE Trans. Signal Processing 41(12), 1993, sections III and IV): any prefix is a coarser model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bitcoding import Bits, Packed


@dataclass
class Significance:
    """Counts that fix the length of every section: ``n_significant`` before the current plane, ``n_new`` in it."""

    n_weights: int
    n_significant: int = 0
    n_new: int = 0

    def n_bits(self, kind: str) -> int:
        """Length of the next section of a kind; a significance section opens a plane."""
        if kind == "significance":
            self.n_significant += self.n_new
            self.n_new = 0
            return self.n_weights - self.n_significant
        if kind.startswith("byte"):
            return 8 * self.n_new
        return self.n_new if kind == "flip" else self.n_significant

    def see(self, kind: str, n_ones: int) -> None:
        """Takes note of the ones of the section just read."""
        if kind == "significance":
            self.n_new = n_ones


def sections_reference(planes: Sequence[Packed], flip: Packed | None, n_weights: int) -> list[tuple[int, str, Bits]]:
    """Plain and slow :func:`sections`: one weight at a time."""
    rows = [[int(plane[i >> 3]) >> (i & 7) & 1 for i in range(n_weights)] for plane in planes]
    significant = [False] * n_weights
    out = []
    for index, row in enumerate(rows):
        plane = len(planes) - 1 - index
        new = [not old and bit == 1 for old, bit in zip(significant, row, strict=True)]
        out.append((plane, "significance", _pack([bit for old, bit in zip(significant, row, strict=True) if not old])))
        if flip is not None:
            out.append((plane, "flip", _pack([int(flip[i >> 3]) >> (i & 7) & 1 for i in range(n_weights) if new[i]])))
        if index:
            out.append((plane, "refinement", _pack([bit for old, bit in zip(significant, row, strict=True) if old])))
        significant = [old or bit == 1 for old, bit in zip(significant, row, strict=True)]
    return out


def sections(planes: Sequence[Packed], flip: Packed | None, n_weights: int) -> list[tuple[int, str, Bits]]:
    """Sections of a tensor in file order.

    Args:
        planes: Packed bits uint8 [ceil(n_weights / 8)] of each plane, most significant first.
        flip: Packed flip bits over all weights, or None; those of zero weights are not written.
        n_weights: Number of weights.

    Returns:
        (plane, kind, bits) with plane 0 the least significant.
    """
    out = [(len(planes) - 1, "significance", Bits(planes[0], n_weights))]
    if len(planes) == 1 and flip is None:
        return out
    flips = None if flip is None else _unpack(flip, n_weights)
    significant = _unpack(planes[0], n_weights)
    if flips is not None:
        out.append((len(planes) - 1, "flip", _pack(flips[significant])))
    for plane, packed in zip(reversed(range(len(planes) - 1)), planes[1:], strict=True):
        bits = _unpack(packed, n_weights)
        out.append((plane, "significance", _pack(bits[~significant])))
        if flips is not None:
            out.append((plane, "flip", _pack(flips[bits & ~significant])))
        out.append((plane, "refinement", _pack(bits[significant])))
        significant = significant | bits
    return out


class Assembly:
    """Puts the sections of one tensor together again, in file order."""

    def __init__(self, n_weights: int, *, n_planes: int, flip: bool) -> None:
        self.n_weights = n_weights
        self.counts = Significance(n_weights)
        self.planes: list[Packed] = []
        self.flip: Packed | None = np.zeros(-(-n_weights // 8), np.uint8) if flip else None
        self.value_bytes: list[Bits] = []
        self._single = n_planes == 1
        self._significant = np.zeros(0 if self._single and not flip else n_weights, bool)
        self._new = self._significant
        self._bits = self._significant

    def add(self, kind: str, bits: Bits) -> None:
        """Takes the next section, of the length that ``counts.n_bits(kind)`` gave."""
        self.counts.see(kind, bits.n_ones)
        if kind == "significance":
            if self._single and self.flip is None:
                self.planes.append(bits.packed)
                return
            self._significant = self._significant | self._new
            self._new = _spread(bits, ~self._significant)
            self._bits = self._new
            self.planes.append(np.packbits(self._bits, bitorder="little"))
        elif kind == "flip":
            assert self.flip is not None
            self.flip |= np.packbits(_spread(bits, self._new), bitorder="little")
        elif kind.startswith("byte"):
            self.value_bytes.append(bits)
        else:
            self._bits = self._new | _spread(bits, self._significant)
            self.planes[-1] = np.packbits(self._bits, bitorder="little")


def _spread(bits: Bits, where: np.ndarray) -> np.ndarray:
    """Booleans [n_weights]: the bits, in order, at the positions where ``where`` is true."""
    out = np.zeros(len(where), bool)
    out[where] = _unpack(bits.packed, bits.n_bits)
    return out


def _unpack(packed: Packed, n_bits: int) -> np.ndarray:
    return np.unpackbits(packed, count=n_bits, bitorder="little").view(bool)


def _pack(bits: Sequence[int] | np.ndarray) -> Bits:
    return Bits(np.packbits(np.asarray(bits, dtype=bool), bitorder="little"), len(bits))
