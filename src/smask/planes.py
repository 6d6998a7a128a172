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

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .bitcoding import Bits, Packed
from .contexts import MOST_WEIGHTS, Context
from .counting import Integers

# Bytes of packed bits that are worked on at a time: integers of eight bytes for each stay in the second-level cache.
N_CHUNK_BYTES = 1 << 14
EVERY_BYTE = np.uint64(0x0101010101010101)
NO_WEIGHTS = np.zeros((0, 0), np.int64)


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
    significant = planes[0]
    if flip is not None:
        out.append((len(planes) - 1, "flip", extract(flip, significant)))
    for plane, packed in zip(reversed(range(len(planes) - 1)), planes[1:], strict=True):
        new = packed & ~significant
        out.append((plane, "significance", extract(packed, _rest(significant, n_weights))))
        if flip is not None:
            out.append((plane, "flip", extract(flip, new)))
        out.append((plane, "refinement", extract(packed, significant)))
        significant = significant | packed
    return out


class Above:
    """What the planes above a section say of the weights of a tensor, for codings that look at it.

    Args:
        shape: Of the tensor.
        planes: Packed bits of its planes from the highest, as far as they are known; more may be added to the list.
        flip: Packed flip bits, those that are not known yet zero; or None.
    """

    def __init__(self, shape: Sequence[int], planes: list[Packed], flip: Packed | None) -> None:
        self._n_weights, self._planes, self._flip = math.prod(shape), planes, flip
        # Two dimensions at least, and a window.
        self._shape = (*shape, 1, 1)[: max(2, len(shape))]
        self._magnitudes: Integers | None = None
        self._n_added = 0

    def context(self, kind: str, n_above: int) -> Callable[[], Context] | None:
        """Makes the context of a section below so many planes; None where the coding ``range`` has none.

        Planes above one another may be asked for in this order alone.
        """
        if kind.startswith("byte") or self._n_weights > MOST_WEIGHTS:
            return None
        return lambda: self._context(kind, n_above)

    def _context(self, kind: str, n_above: int) -> Context:
        if self._magnitudes is None:
            self._magnitudes = np.zeros(self._n_weights, np.int64)
        for plane in self._planes[self._n_added : n_above]:
            self._magnitudes = 2 * self._magnitudes + self._bits(plane)
        self._n_added = n_above
        values = self._magnitudes
        if self._flip is not None:
            values = np.where(self._bits(self._flip), -values, values)
        new = None
        if kind == "flip":
            new = (self._bits(self._planes[n_above]).view(bool) & (values == 0)).reshape(self._shape)
        return Context(kind, values.reshape(self._shape), new)

    def _bits(self, packed: Packed) -> Packed:
        return np.unpackbits(packed, count=self._n_weights, bitorder="little")


class Assembly:
    """Puts the sections of one tensor together again, in file order."""

    def __init__(self, shape: Sequence[int], *, n_planes: int, flip: bool) -> None:
        self.n_weights = n_weights = math.prod(shape)
        self.counts = Significance(n_weights)
        self.planes: list[Packed] = []
        self.flip: Packed | None = np.zeros(-(-n_weights // 8), np.uint8) if flip else None
        self._above = Above(shape, self.planes, self.flip)
        self.value_bytes: list[Bits] = []
        n_bytes = 0 if n_planes == 1 and not flip else -(-n_weights // 8)
        self._significant = np.zeros(n_bytes, np.uint8)
        self._new = self._significant

    def context(self, kind: str, n_bits: int) -> Callable[[], Context] | None:
        """Makes the context of the next section, see :meth:`Above.context`, which has ``n_bits``."""
        context = self._above.context(kind, len(self.planes) - (kind != "significance"))
        if context is None or n_bits:
            return context
        # Without a bit nothing has to be known, and a tensor of any size costs no more than its blob.
        return lambda: Context(kind, NO_WEIGHTS, NO_WEIGHTS.astype(bool))

    def add(self, kind: str, bits: Bits) -> None:
        """Takes the next section, of the length that ``counts.n_bits(kind)`` gave."""
        self.counts.see(kind, bits.n_ones)
        if kind == "significance":
            if not self.planes:
                self._new = bits.packed
            else:
                self._significant = self._significant | self._new
                self._new = deposit(bits, _rest(self._significant, self.n_weights))
            self.planes.append(self._new)
        elif kind == "flip":
            assert self.flip is not None
            self.flip |= deposit(bits, self._new)
        elif kind.startswith("byte"):
            self.value_bytes.append(bits)
        else:
            self.planes[-1] = self._new | deposit(bits, self._significant)


def extract_reference(packed: Packed, where: Packed) -> Bits:
    """Plain and slow :func:`extract`."""
    chosen = np.unpackbits(where, bitorder="little").view(bool)
    return _pack(np.unpackbits(packed, bitorder="little")[chosen])


def extract(packed: Packed, where: Packed) -> Bits:
    """The bits at the places that ``where`` marks, in order; both uint8 [n], the result has as many bits as marks.

    A table has the answer for every byte of marks and every byte of bits; answers are then joined two by two until they
    are words of 64 bits, and the words are laid end to end.
    """
    table, parts, open_word, n_open = _tables()[0], [], np.uint64(0), 0
    for start in range(0, len(where), N_CHUNK_BYTES):
        marks = _whole_words(where[start : start + N_CHUNK_BYTES])
        bits = _whole_words(packed[start : start + N_CHUNK_BYTES])
        words = table.take(marks.astype(np.uint16) << 8 | bits)
        counts = np.bitwise_count(marks)
        for narrow in (np.uint16, np.uint32, np.uint64):
            words = words[0::2] | words[1::2].astype(narrow) << counts[0::2].astype(narrow)
            counts = counts[0::2] + counts[1::2]
        ends = n_open + np.cumsum(counts, dtype=np.int64)
        offsets = ends - counts
        out = np.zeros(int(ends[-1]) // 64 + 2, np.uint64)
        out[0] = open_word
        within = (offsets & 63).astype(np.uint64)
        np.bitwise_or.at(out, offsets >> 6, words << within)
        # A word that begins at bit 0 has nothing to carry, and a shift by 64 is no shift.
        np.bitwise_or.at(out, (offsets >> 6) + 1, words >> np.uint64(1) >> (np.uint64(63) - within))
        n_whole, n_open = divmod(int(ends[-1]), 64)
        open_word = out[n_whole]
        parts.append(out[:n_whole])
    n_bits = 64 * sum(map(len, parts)) + n_open
    out = np.concatenate([*parts, np.array([open_word], np.uint64)])
    return Bits(out.view(np.uint8)[: -(-n_bits // 8)], n_bits)


def deposit_reference(bits: Bits, where: Packed) -> Packed:
    """Plain and slow :func:`deposit`."""
    marks = np.unpackbits(where, bitorder="little")
    marks[marks.view(bool)] = np.unpackbits(bits.packed, count=bits.n_bits, bitorder="little")
    return np.packbits(marks, bitorder="little")


def deposit(bits: Bits, where: Packed) -> Packed:
    """Inverse of :func:`extract`: uint8 [n] with the bits, in order, at the places that ``where`` marks, else zeros."""
    table, out, first = _tables()[1], np.empty(len(where), np.uint8), 0
    # Two bytes at every byte: the eight bits that follow any bit lie in them.
    pairs = np.zeros(len(bits.packed) + 1, np.uint16)
    pairs[:-1] = bits.packed
    pairs[:-2] |= bits.packed[1:].astype(np.uint16) << 8
    for start in range(0, len(where), N_CHUNK_BYTES):
        marks = where[start : start + N_CHUNK_BYTES]
        counts = np.bitwise_count(_whole_words(marks)).view(np.uint64)
        # A product with ones in all bytes has in every byte the sum of the counts up to it, at most 64.
        sums = counts * EVERY_BYTE
        totals = (sums >> np.uint64(56)).astype(np.int64)
        ends = first + np.cumsum(totals)
        offsets = ((ends - totals)[:, None] + (sums - counts).view(np.uint8).reshape(-1, 8)).reshape(-1)[: len(marks)]
        following = pairs.take(offsets >> 3) >> (offsets.astype(np.uint16) & 7) & 255
        out[start : start + N_CHUNK_BYTES] = table.take(marks.astype(np.uint16) << 8 | following)
        first = int(ends[-1])
    return out


@functools.cache
def _tables() -> tuple[Packed, Packed]:
    """uint8 [65536] each: bits extracted and bits deposited, at index ``marks << 8 | bits``."""
    marks, bits = np.divmod(np.arange(1 << 16, dtype=np.uint32), 256)
    extracted, deposited, count = np.zeros_like(marks), np.zeros_like(marks), np.zeros_like(marks)
    for place in range(8):
        marked = marks >> place & 1
        extracted |= (bits >> place & marked) << count
        deposited |= (bits >> count & marked) << place
        count += marked
    return extracted.astype(np.uint8), deposited.astype(np.uint8)


def _whole_words(packed: Packed) -> Packed:
    return packed if len(packed) % 8 == 0 else np.concatenate([packed, np.zeros(-len(packed) % 8, np.uint8)])


def _rest(significant: Packed, n_weights: int) -> Packed:
    """Marks of the weights that are not significant."""
    rest = ~significant
    if n_weights % 8:
        rest[-1] &= (1 << n_weights % 8) - 1
    return rest


def _pack(bits: Sequence[int] | np.ndarray) -> Bits:
    return Bits(np.packbits(np.asarray(bits, dtype=bool), bitorder="little"), len(bits))
