"""Contexts of byte planes (section 11): under which chance each bit of a range-coded one is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass

from bitarray import bitarray

from refcontexts import Counts
from refrange import RangeDecoder

Place = tuple[int | None, int | None]  # H, of any but the highest byte of a value, and where the partner is


@dataclass(frozen=True)
class KnownBytes:
    """What is known of the floats before a byte plane: the bytes above it, in arrays of (width, count)."""

    plane: int
    sizes: list[tuple[int, int]]
    arrays: list[bytearray]

    def places(self) -> Iterator[Place]:
        """Of the bytes of the plane, in order."""
        at = count_before = 0
        for (width, count), array in zip(self.sizes, self.arrays, strict=True):
            if width <= self.plane or not count:
                continue  # passed over: the parameter before is one that has bytes here
            for end in range(width, width * count + 1, width):
                above = array[end - width + self.plane + 1 : end]
                has_partner = count == count_before and (at - count) // 8 < at // 8
                yield int.from_bytes(above, "little") if above else None, at - count if has_partner else None
                at += 1
            count_before = count


def decode_bytes(blob: bytes, known: KnownBytes) -> bitarray:
    """A byte plane; [F-05]."""
    decoder, counts = RangeDecoder(blob), Counts([2**15] * 800, 2**16)
    places = list(known.places())
    data = bytearray(len(places))
    for first in range(0, len(data), 8):
        seen = []
        for j in reversed(range(8)):
            for at in range(first, min(first + 8, len(data))):
                x = context(j, data[at], *places[at], data)
                bit = decoder.bit(counts.chance(x))
                data[at] |= bit << j
                seen.append((x, bit))
        counts.add(seen)
    decoder.finish()
    bits = bitarray(endian="little")
    bits.frombytes(bytes(data))
    return bits


def context(j: int, byte: int, high: int | None, partner: int | None, data: bytearray) -> int:
    """Of bit j, given the bits of its byte above; [F-05]."""
    if high is None:
        p = 0 if partner is None else 1 if data[partner] else 2
        return 256 * p + (256 + byte >> j + 1)
    return 768 + 16 * (high == 0) + (high % 8 if j == 7 else 8 + j)
