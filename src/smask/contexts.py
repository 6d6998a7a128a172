"""Which bits of a plane are likely, given the planes above it and the rows before: for the coding ``range``. No torch.

Weights lie as [O, I, K]: dimension 0, dimension 1, all others (the window). Trained weights are large in some output
channels, some input channels, some places of a window, and beside other large ones. How much more than the mean each of
the four says, from counts of what is known, is added up in eighths of octaves; the sum is the context of a weight. All
of it is in integers, so that no two machines differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import rangecoding
from .counting import Counts, Integers, before, blocks, ends
from .errors import FormatError
from .rangecoding import CERTAIN, Booleans, Model
from .signs import signs, signs_at_once

# Products of counts then fit in 63 bits.
MOST_WEIGHTS = 1 << 22
# Contexts are half octaves of what is expected, the middle ones next to the mean.
N_CONTEXTS = 16
# Weights significant above are told apart up to this magnitude.
N_SEEN = 4
# floor(8 log2(m / 128) + 1/2) for m = 128 ... 255
EIGHTHS = np.array([math.floor(8 * math.log2(m / 128) + 0.5) for m in range(128, 256)])
# About 8 log2 of a binary64 from 1 on, by its exponent and the first seven bits of its fraction.
LOGARITHMS = (8 * np.arange(64)[:, None] + EIGHTHS).reshape(-1)
N_DROPPED, FIRST_INDEX = 52 - 7, 1023 << 7
# 2**8 times the middle of each context.
MIDDLES = tuple(math.floor(256 * 2 ** ((context - 7.5) / 2) + 0.5) for context in range(N_CONTEXTS))


@dataclass(frozen=True, eq=False)
class Context:
    """What is known where a section begins.

    Attributes:
        kind: ``significance``, ``flip`` or ``refinement``.
        above: int64 [O, I, ...], at least two dimensions; what the planes above say of the weights, negative where the
            flip bit is set.
        new: bool of the same shape; weights that became significant in this plane, for ``flip``.
    """

    kind: str
    above: Integers
    new: Booleans | None = None

    def encode(self, bits: Booleans) -> bytes:
        """Bytes of the coding ``range`` for the bits of the section, bool [n]."""
        if self.kind == "flip":
            assert self.new is not None
            return rangecoding.encode(bits, signs_at_once(self.above, self.new, bits))
        byte = byte_of(int(np.count_nonzero(bits)), len(bits))
        chances = significance_at_once if self.kind == "significance" else refinement_at_once
        return bytes([byte]) + rangecoding.encode(bits, chances(self._magnitudes(), byte, bits))

    def decode(self, blob: bytes | memoryview, *, where: str) -> Booleans:
        """Inverse of :meth:`encode`; raises FormatError for what no encoder gives."""
        if self.kind == "flip":
            assert self.new is not None
            return rangecoding.decode(blob, signs(self.above, self.new), where=where)
        if not len(blob):
            raise FormatError("E-01", where, "no byte", "a density before the words")
        model = significance if self.kind == "significance" else refinement
        return rangecoding.decode(blob[1:], model(self._magnitudes(), blob[0]), where=where)

    def _magnitudes(self) -> Integers:
        return np.abs(self.above).reshape(*self.above.shape[:2], math.prod(self.above.shape[2:]))


def density_of(byte: int) -> tuple[int, int]:
    """The density a byte stands for, as (numerator, shift): ``numerator / 2**shift``."""
    return 16 + (byte & 15), 5 + (byte >> 4)


DENSITIES = np.array([numerator * 2.0**-shift for numerator, shift in map(density_of, range(256))])


def byte_of(n_ones: int, n_bits: int) -> int:
    """The byte whose density is nearest to that of a section."""
    return int(np.abs(DENSITIES - n_ones / max(1, n_bits)).argmin())


def significance_reference(above: Integers, byte: int) -> Model:
    """Plain and slow :func:`significance`: one weight at a time."""
    (n_o, n_i, n_k), n, a = above.shape, above.size, above.tolist()
    everything = [q for row in a for window in row for q in window]
    n_expected = _expected(byte, everything.count(0))
    mean, total, counts = 2 * sum(everything) + n_expected, sum(everything), _counts(byte)
    columns = [1 + 2 * sum(sum(a[o][i]) for o in range(n_o)) for i in range(n_i)]
    places = [1 + 2 * sum(a[o][i][k] for o in range(n_o) for i in range(n_i)) for k in range(n_k)]
    for first, last in blocks(n_o):
        so_far = 2 * total * n_o + n_expected * first
        where, contexts = [], []
        for o in range(first, last):
            of_row = sum(map(sum, a[o]))
            row = _log(2 * of_row * n + n_i * n_k * n_expected + 2 * mean) - _log((n_i * n_k + 2) * mean)
            for i in range(n_i):
                window = _log(4 * sum(a[o][i]) * n + 2 * n_k * n_expected + 3 * mean) - _log((2 * n_k + 3) * mean)
                column = _log(columns[i] * n) - _log(n_k * so_far + n)
                for k in range(n_k):
                    place = _log(places[k] * n) - _log(n_i * so_far + n)
                    if a[o][i][k] == 0:
                        eighths = row + column + (place + (window >> 1) if n_k > 1 else 0)
                        contexts.append(min(N_CONTEXTS - 1, max(0, (eighths >> 2) + N_CONTEXTS // 2)))
                        where.append((i, k))
        bits = yield counts.chances(np.array(contexts, np.int64))
        counts.see(np.array(contexts, np.int64), bits)
        for bit, (i, k) in zip(bits, where, strict=True):
            columns[i] += int(bit)
            places[k] += int(bit)


class _Significance:
    """What is known of a section before its bits: logarithms of rows and windows, and sums that go on."""

    def __init__(self, above: Integers, byte: int) -> None:
        (n_o, n_i, n_k), n = self._shape, self._n = above.shape, above.size
        is_open, of_windows = above == 0, above.sum(2)
        self._open = np.flatnonzero(is_open)
        self._rows = np.array([0, *(last for _, last in blocks(n_o if n else 0))])
        self.n_blocks = len(self._rows) - 1
        self.sizes, stops = ends(self._open, above.shape)
        self._stops = [0, *stops]
        total = int(of_windows.sum())
        n_expected = _expected(byte, len(self._open))
        mean = 2 * total + n_expected
        own = _logs(2 * of_windows.sum(1) * n + (n_i * n_k * n_expected + 2 * mean)) - _log((n_i * n_k + 2) * mean)
        self._own = own[:, None]
        so_far = 2 * total * n_o + n_expected * self._rows[:-1, None]
        # Columns and, after them, places of a window: one more than twice what was seen so far.
        self.seen = 1 + 2 * of_windows.sum(0)
        self._means = np.repeat(_logs(n_k * so_far + n), n_i, 1)
        if n_k > 1:
            windows = _logs(4 * of_windows * n + (2 * n_k * n_expected + 3 * mean)) - _log((2 * n_k + 3) * mean)
            self._own = self._own + (windows >> 1)
            self.seen = np.concatenate([self.seen, 1 + 2 * above.sum((0, 1))])
            self._means = np.concatenate([self._means, np.repeat(_logs(n_i * so_far + n), n_k, 1)], 1)

    def contexts(self, first: int, last: int, seen: Integers) -> Integers:
        """Of the open weights of some blocks, each with what was seen before it, [blocks, I + K]."""
        n_i, more = self._shape[1], _logs(seen * self._n) - self._means[first:last]
        more = np.repeat(more, np.diff(self._rows[first : last + 1]), axis=0)
        eighths = (self._own[self._rows[first] : self._rows[last]] + more[:, :n_i])[:, :, None]
        if self._shape[2] > 1:
            eighths = eighths + more[:, None, n_i:]
        contexts: Integers = (eighths.reshape(-1).take(self._places(first, last)) >> 2) + N_CONTEXTS // 2
        return np.minimum(N_CONTEXTS - 1, np.maximum(0, contexts, out=contexts), out=contexts)

    def found(self, first: int, last: int, bits: Booleans) -> Integers:
        """Ones of each row of some blocks, by column and place, [rows, I + K]."""
        n_rows, (n_i, n_k) = int(self._rows[last] - self._rows[first]), self._shape[1:]
        found = np.zeros((n_rows, n_i, n_k), np.int64)
        found.reshape(-1)[self._places(first, last)] = bits
        columns = found @ np.ones(n_k, np.int64)
        return columns if n_k == 1 else np.concatenate([columns, found.sum(1)], 1)

    def seen_before(self, bits: Booleans) -> Integers:
        """What was seen before every block, all bits given, [blocks, I + K]."""
        return before(self.seen, np.add.reduceat(self.found(0, self.n_blocks, bits), self._rows[:-1]))

    def _places(self, first: int, last: int) -> Integers:
        """Of open weights, from the first of the first block on."""
        n_before = self._rows[first] * self._shape[1] * self._shape[2]
        places: Integers = self._open[self._stops[first] : self._stops[last]] - n_before
        return places


def significance(above: Integers, byte: int) -> Model:
    """Chances that weights become significant in a plane.

    Args:
        above: [O, I, K], magnitudes by the planes above; bits are asked for where it is 0, in row-major order.
        byte: Density of the section, see :func:`density_of`.
    """
    known, counts = _Significance(above, byte), _counts(byte)
    seen = known.seen
    for block in range(known.n_blocks):
        contexts = known.contexts(block, block + 1, seen)
        bits = yield counts.chances(contexts)
        counts.see(contexts, bits)
        seen = seen + known.found(block, block + 1, bits).sum(0)


def significance_at_once(above: Integers, byte: int, bits: Booleans) -> Integers:
    """All that :func:`significance` gives when it is shown these bits."""
    known = _Significance(above, byte)
    if not known.n_blocks:
        return np.zeros(0, np.int64)
    contexts = known.contexts(0, known.n_blocks, known.seen_before(bits))
    return _counts(byte).at_once(contexts, bits, known.sizes)


def refinement_reference(above: Integers, byte: int) -> Model:
    """Plain and slow :func:`refinement`: one weight at a time."""
    counts = Counts([_chance(byte, 256)] * N_SEEN)
    for first, last in blocks(len(above)):
        magnitudes = [q for row in above[first:last].tolist() for window in row for q in window if q]
        contexts = np.array([min(q, N_SEEN) - 1 for q in magnitudes], np.int64)
        bits = yield counts.chances(contexts)
        for context, bit in zip(contexts, bits, strict=True):
            counts.see(np.array([context]), np.array([bit]))


def refinement(above: Integers, byte: int) -> Model:
    """Chances of a one in the next bit of significant weights.

    Args:
        above: [O, I, K], magnitudes by the planes above; bits are asked for where it is not 0, in row-major order.
        byte: Density of the section, see :func:`density_of`.
    """
    (contexts, _, stops), counts = _magnitudes(above), Counts([_chance(byte, 256)] * N_SEEN)
    for first, stop in zip((0, *stops), stops, strict=False):
        bits = yield counts.chances(contexts[first:stop])
        counts.see(contexts[first:stop], bits)


def refinement_at_once(above: Integers, byte: int, bits: Booleans) -> Integers:
    """All that :func:`refinement` gives when it is shown these bits."""
    contexts, sizes, _ = _magnitudes(above)
    return Counts([_chance(byte, 256)] * N_SEEN).at_once(contexts, bits, sizes)


def _magnitudes(above: Integers) -> tuple[Integers, Integers, list[int]]:
    """Contexts of all significant weights; sizes and ends of blocks."""
    where = np.flatnonzero(above)
    contexts = np.minimum(above.reshape(-1).take(where), N_SEEN) - 1
    return contexts, *ends(where, above.shape)


def _expected(byte: int, n_open: int) -> int:
    """Ones that a section of a density has, at least one."""
    numerator, shift = density_of(byte)
    return max(1, numerator * n_open >> shift)


def _chance(byte: int, middle: int) -> int:
    """The density times ``middle / 256``, out of 65536, at most 4/5."""
    numerator, shift = density_of(byte)
    return min(4 * CERTAIN // 5, max(1, numerator * middle << 8 >> shift))


def _counts(byte: int) -> Counts:
    return Counts([_chance(byte, middle) for middle in MIDDLES])


def _log(value: int) -> int:
    """About 8 log2 of a positive integer."""
    n_bits = value.bit_length()
    return 8 * (n_bits - 1) + int(EIGHTHS[(value >> n_bits - 8 if n_bits > 8 else value << 8 - n_bits) - 128])


def _logs(values: Integers) -> Integers:
    """As :func:`_log`, of int64."""
    # Low bits of large values go first, as rounding might make the leading ones others.
    exact = np.where(values >> 53 > 0, values & -1024, values).astype(np.float64)
    logs: Integers = LOGARITHMS[(exact.view(np.int64) >> N_DROPPED) - FIRST_INDEX]
    return logs
