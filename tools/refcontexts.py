"""Contexts (section 10.2): under which chance each bit of a range-coded section of planes is decoded."""

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, prod

from bitarray import bitarray

from referrors import need
from refrange import RangeDecoder

Place = tuple[int, int, int]  # o, i, k


@dataclass(frozen=True)
class Known:
    """What is known of a tensor before a section of it: magnitudes by the planes above and flips so far. `open` marks
    the weights that have a bit in the section. Silent channels are in none of these: [P-08]."""

    kind: str
    shape: tuple[int, ...]
    above: list[int]
    flips: bitarray
    open: bitarray

    def lengths(self) -> Place:
        rows, columns, *window = *self.shape, *[1] * (2 - len(self.shape))
        return rows, columns, prod(window)

    def place(self, i: int) -> Place:
        _, columns, places = self.lengths()
        return i // places // columns, i // places % columns, i % places


class Counts:
    """[K-01]: ones and all bits of each context."""

    def __init__(self, ones: list[int], total: int) -> None:
        self.ones, self.totals = ones, [total] * len(ones)

    def chance(self, x: int) -> int:
        return min(max((self.ones[x] << 16) // self.totals[x], 1), 2**16 - 1)

    def add(self, seen: list[tuple[int, int]]) -> None:
        """The contexts and bits of a block."""
        for x, bit in seen:
            self.totals[x] += 2**16
            self.ones[x] += 2**16 * bit


def decode_range(blob: bytes, known: Known) -> bitarray:
    """A section of a plane; [K-01]."""
    has_density = known.kind != "flip"
    need(len(blob) >= has_density, "E-01", "no density")
    density = Fraction(16 + (blob[0] & 15), 2 ** (5 + (blob[0] >> 4))) if has_density else Fraction()  # K-02
    decoder, bits = RangeDecoder(blob[has_density:]), bitarray(endian="little")
    if not known.open.any():
        decoder.finish()
        return bits
    contexts = CONTEXTS[known.kind](known, density)
    counts = Counts([6 * prior for prior in contexts.priors], 6 * 2**16)
    rows, columns, places = known.lengths()
    blocks = min(rows, 16)
    for b in range(blocks):
        first, end = b * rows // blocks, (b + 1) * rows // blocks
        contexts.start(first)
        seen = []
        for i in range(first * columns * places, end * columns * places):
            if known.open[i]:
                x, turned = contexts.context(i)
                chance = counts.chance(x)
                bits.append(decoder.bit(2**16 - chance if turned else chance))
                seen.append((i, x, bits[-1] ^ turned, bits[-1]))
        counts.add([(x, bit) for _, x, bit, _ in seen])
        for i, _, _, bit in seen:
            contexts.learn(i, bit)
    decoder.finish()
    return bits


def prior(density: Fraction, factor: int) -> int:
    """[K-02]"""
    return min(max(int(density * factor * 2**8), 1), 52_428)


def log(v: int) -> int:
    """[K-03]; the logarithm of the 16th power of a mantissa is found without fractions."""
    mantissa = (v << 8) >> v.bit_length()
    return 8 * (v.bit_length() - 1) + ((mantissa**16).bit_length() - 112) // 2


def sums(values: list[int], places: list[int], n: int) -> list[int]:
    """How much of the values lies at each of n places."""
    result = [0] * n
    for value, place in zip(values, places, strict=True):
        result[place] += value
    return result


class Significance:
    """[K-04]"""

    def __init__(self, known: Known, density: Fraction) -> None:
        self.known = known
        self.priors = [prior(density, (isqrt(isqrt(2 ** (2 * x + 21))) + 1) // 2) for x in range(16)]
        rows, columns, places = known.lengths()
        at, a = [known.place(i) for i in range(len(known.above))], known.above
        self.n, self.sum, self.expected = len(a), sum(a), max(int(density * known.open.count()), 1)
        n, e, m = self.n, self.expected, 2 * self.sum + self.expected
        self.row_terms = [
            log(2 * n * s + columns * places * e + 2 * m) - log((columns * places + 2) * m)
            for s in sums(a, [o for o, _, _ in at], rows)
        ]
        self.window_terms = [
            (log(4 * n * s + 2 * places * e + 3 * m) - log((2 * places + 3) * m)) >> 1 if places > 1 else 0
            for s in sums(a, [o * columns + i for o, i, _ in at], rows * columns)
        ]
        self.columns = [1 + 2 * s for s in sums(a, [i for _, i, _ in at], columns)]
        self.places = [1 + 2 * s for s in sums(a, [k for _, _, k in at], places)]

    def start(self, first: int) -> None:
        """Before the block of this first row."""
        rows, columns, places = self.known.lengths()
        q = 2 * rows * self.sum + self.expected * first
        self.column_terms = [log(self.n * c) - log(places * q + self.n) for c in self.columns]
        self.place_terms = [log(self.n * c) - log(columns * q + self.n) if places > 1 else 0 for c in self.places]

    def context(self, at: int) -> tuple[int, bool]:
        """The context of a weight's bit, and whether it is turned."""
        o, i, k = self.known.place(at)
        window = self.window_terms[o * len(self.columns) + i]
        t = self.row_terms[o] + self.column_terms[i] + self.place_terms[k] + window
        return min(max((t >> 2) + 8, 0), 15), False

    def learn(self, at: int, bit: int) -> None:
        """After its block."""
        _, i, k = self.known.place(at)
        self.columns[i] += bit
        self.places[k] += bit


class Refinement:
    """[K-05]"""

    def __init__(self, known: Known, density: Fraction) -> None:
        self.known, self.priors = known, [prior(density, 2**8)] * 5

    def start(self, _: int) -> None: ...

    def context(self, at: int) -> tuple[int, bool]:
        return min(self.known.above[at], 4), False

    def learn(self, at: int, bit: int) -> None: ...


class Flips:
    """[K-06]"""

    def __init__(self, known: Known, _: Fraction) -> None:
        self.known, self.priors = known, [2**15] * 45
        self.v = [-a if flip else a for a, flip in zip(known.above, known.flips, strict=True)]
        rows, columns, places = known.lengths()
        at, signs = [known.place(i) for i in range(len(self.v))], [(v > 0) - (v < 0) for v in self.v]
        self.windows = sums(self.v, [o * columns + i for o, i, _ in at], rows * columns)
        self.neighbours = [window_neighbours(k, known.shape[2:]) for k in range(places)] if places > 1 else []
        row_signs, self.column_signs = [[] for _ in range(rows)], [[] for _ in range(columns)]
        for (o, i, _), sign in zip(at, signs, strict=True):
            row_signs[o].append(sign)
            self.column_signs[i].append(sign)
        self.rows = list(map(leaning, row_signs))

    def start(self, _: int) -> None:
        self.columns = list(map(leaning, self.column_signs))

    def context(self, at: int) -> tuple[int, bool]:
        o, i, k = self.known.place(at)
        if self.neighbours:
            near = sum(self.v[at - k + j] for j in self.neighbours[k])
            far = self.windows[o * len(self.columns) + i] - near
            h, g = (min(max(hint, -3), 3) for hint in (near, far))
        else:
            h, g = self.columns[i], self.rows[o]
        turned = (h, g) < (0, 0)
        return 9 * abs(h) + (-g if turned else g) + 4, turned

    def learn(self, at: int, bit: int) -> None:
        self.column_signs[self.known.place(at)[1]].append(-1 if bit else 1)


def leaning(signs: list[int]) -> int:
    """Of weights with these signs, or 0 for a weight that has none."""
    total, n_weights = sum(signs), len(signs) - signs.count(0)
    size = sum(total**2 >= f**2 * n_weights for f in (1, 2, 4, 8))
    return size if total > 0 else -size if total else 0


def window_neighbours(k: int, lengths: tuple[int, ...]) -> list[int]:
    """Places of a window of these lengths that are next to place k."""
    found, stride = [], 1
    for length in reversed(lengths):
        place = k // stride % length
        found += [k - stride] * (place > 0) + [k + stride] * (place + 1 < length)
        stride *= length
    return found


CONTEXTS = {"significance": Significance, "refinement": Refinement, "flip": Flips}
