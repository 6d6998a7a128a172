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
from .counting import Counts, Integers, blocks
from .errors import FormatError
from .rangecoding import CERTAIN, Booleans, Model
from .signs import signs

# Products of counts then fit in 63 bits.
MOST_WEIGHTS = 1 << 22
# Contexts are half octaves of what is expected, the middle ones next to the mean.
N_CONTEXTS = 16
# Weights significant above are told apart up to this magnitude.
N_SEEN = 4
# floor(8 log2(m / 128) + 1/2) for m = 128 ... 255
EIGHTHS = np.array([math.floor(8 * math.log2(m / 128) + 0.5) for m in range(128, 256)])
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
            return rangecoding.encode(bits, self._model(0))
        byte = byte_of(int(np.count_nonzero(bits)), len(bits))
        return bytes([byte]) + rangecoding.encode(bits, self._model(byte))

    def decode(self, blob: bytes | memoryview, *, where: str) -> Booleans:
        """Inverse of :meth:`encode`; raises FormatError for what no encoder gives."""
        if self.kind == "flip":
            return rangecoding.decode(blob, self._model(0), where=where)
        if not len(blob):
            raise FormatError("E-01", where, "no byte", "a density before the words")
        return rangecoding.decode(blob[1:], self._model(blob[0]), where=where)

    def _model(self, byte: int) -> Model:
        if self.kind == "flip":
            assert self.new is not None
            return signs(self.above, self.new)
        model = significance if self.kind == "significance" else refinement
        n_window = math.prod(self.above.shape[2:])
        return model(np.abs(self.above).reshape(*self.above.shape[:2], n_window), byte)


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


def significance(above: Integers, byte: int) -> Model:
    """Chances that weights become significant in a plane.

    Args:
        above: [O, I, K], magnitudes by the planes above; bits are asked for where it is 0, in row-major order.
        byte: Density of the section, see :func:`density_of`.
    """
    (n_o, n_i, n_k), n, counts = above.shape, above.size, _counts(byte)
    is_open, of_windows = above == 0, above.sum(2)
    total = int(of_windows.sum())
    n_expected = _expected(byte, int(np.count_nonzero(is_open)))
    mean = 2 * total + n_expected
    own = _logs(2 * of_windows.sum(1) * n + (n_i * n_k * n_expected + 2 * mean)) - _log((n_i * n_k + 2) * mean)
    own = own[:, None]
    if n_k > 1:
        windows = _logs(4 * of_windows * n + (2 * n_k * n_expected + 3 * mean)) - _log((2 * n_k + 3) * mean)
        own = own + (windows >> 1)
    columns, places = 1 + 2 * of_windows.sum(0), 1 + 2 * above.sum((0, 1))
    for first, last in blocks(n_o if n else 0):
        so_far = 2 * total * n_o + n_expected * first
        eighths = (own[first:last] + (_logs(columns * n) - _log(n_k * so_far + n)))[:, :, None]
        if n_k > 1:
            eighths = eighths + (_logs(places * n) - _log(n_i * so_far + n))
        block = is_open[first:last]
        contexts = np.broadcast_to(eighths, block.shape)[block]
        contexts = np.minimum(N_CONTEXTS - 1, np.maximum(0, (contexts >> 2) + N_CONTEXTS // 2))
        bits = yield counts.chances(contexts)
        counts.see(contexts, bits)
        found = np.zeros(block.shape, np.int64)
        found[block] = bits
        columns, places = columns + found.sum((0, 2)), places + found.sum((0, 1))


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
    counts = Counts([_chance(byte, 256)] * N_SEEN)
    for first, last in blocks(len(above)):
        block = above[first:last]
        contexts = np.minimum(block[block > 0], N_SEEN) - 1
        bits = yield counts.chances(contexts)
        counts.see(contexts, bits)


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
    n_bits = np.frexp(values)[1].astype(np.int64)
    n_bits -= values >> n_bits - 1 == 0  # a conversion may round up to the next power of two
    leading = np.where(n_bits > 8, values >> np.maximum(n_bits - 8, 0), values << np.maximum(8 - n_bits, 0))
    logs: Integers = 8 * (n_bits - 1) + EIGHTHS[leading - 128]
    return logs
