"""Bases: numbers made from a seed (sections 7 and 8)."""

import hashlib
import struct
from collections.abc import Iterator
from functools import cache
from itertools import repeat
from statistics import NormalDist

NORMAL_SHA256 = "6621a18f629e82396c088501c1095eae46f6d8033b42db7b4158e0f4cf34a0ce"


def philox(counter: list[int], key: list[int]) -> list[int]:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def words(seed: int, stream: int, start: int) -> Iterator[int]:
    for block in range(start >> 2, 2**64):
        lanes = philox([block & 0xFFFFFFFF, block >> 32, stream, 0], [seed & 0xFFFFFFFF, seed >> 32])
        yield from lanes[start & 3 if block == start >> 2 else 0 :]


@cache
def normal_table() -> tuple[float, ...]:
    table = struct.pack("<32768f", *[NormalDist().inv_cdf((65537 + 2 * k) / 131072) for k in range(2**15)])
    assert hashlib.sha256(table).hexdigest() == NORMAL_SHA256, "the table of S-04 comes out differently here"
    return struct.unpack("<32768f", table)


def base_values(base: str, seed: int, stream: int, start: int, count: int) -> Iterator[float]:
    if base == "one":
        yield from repeat(1.0, count)
        return
    share = {"signed": 32, "uniform": 1, "normal": 2}[base]  # weights to a word
    source, word = words(seed, stream, start // share), 0
    for i in range(start, start + count):
        word = next(source) if i % share == 0 or i == start else word
        if base == "signed":
            yield -1.0 if word >> i % 32 & 1 else 1.0
        elif base == "uniform":
            yield (2 * (word >> 8) + 1 - 2**24) / 2**24
        else:
            half = word >> 16 * (i % 2) & 0xFFFF
            yield -normal_table()[half & 0x7FFF] if half >> 15 else normal_table()[half]
