"""Values: floats from byte planes (section 11) and weights from magnitudes, bases, scales and offsets (section 12)."""

import math
import struct
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace as Record

from bitarray import bitarray

from refbytes import KnownBytes
from referrors import need
from refmanifest import WIDTH
from refsections import Sections

CODES = {"BOOL": "B", "U8": "B", "I8": "b", "I16": "h", "I32": "i", "I64": "q"}  # of struct
CODES |= {"F16": "e", "BF16": "H", "F32": "f", "F64": "d"}


def join_byte_planes(sizes: list[tuple[int, int]], planes: int, section: Sections) -> list[bytes]:
    """Arrays of (width, count), from byte planes that come highest first."""
    arrays = [bytearray(width * count) for width, count in sizes]
    for b in reversed(range(planes)):
        n_bytes = sum(count for width, count in sizes if width > b)
        plane = iter(section("bytes", 8 * n_bytes, KnownBytes(b, sizes, arrays)).tobytes())
        for array, (width, count) in zip(arrays, sizes, strict=True):
            if width > b:
                array[b::width] = bytes(islice(plane, count))
    return [bytes(array) for array in arrays]


def plain_values(data: bytes, stored: str, dtype: str) -> bytes:
    need(dtype != "BOOL" or set(data) <= {0, 1}, "F-04", "BOOL other than 0 and 1")
    data = widen(data, stored, dtype)
    need(stored == dtype or not any(map(math.isnan, unpack(data, dtype))), "F-03", "NaN to be widened")
    return data


def unpack(data: bytes, dtype: str) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // WIDTH[dtype]}{CODES[dtype]}", data)


def widen(data: bytes, source: str, target: str) -> bytes:
    if source == "BF16" != target:  # the upper half of binary32
        source, data = "F32", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    if source == target:
        return data
    values = unpack(data, source)
    return struct.pack(f"<{len(values)}{CODES[target]}", *values)


def silent_channels(r: Record, parts: list[bytes]) -> list[bool]:
    """Of each channel whether it is silent, given the parameters of a record; [] of a record that cannot have such
    channels: one without levels, with `trellis` or with one scale. [P-08]"""
    if not r.scale or r.trellis or r.scale[0] != "channel":
        return []
    return [scale == 0 for scale in unpack(widen(parts[0], r.scale[1], "F32"), "F32")]  # parts begin with the scale


def f32(x: float) -> float:
    """Round to binary32. x is a binary64 sum or product of binary32 numbers: as 53 >= 2 * 24 + 2, rounding twice is
    the same as rounding once."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def narrow(weight: float, dtype: str) -> bytes:
    """Round or widen a binary32 number."""
    if dtype == "BF16":
        bits = int.from_bytes(struct.pack("<f", weight), "little")
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).to_bytes(2, "little")
    try:
        return struct.pack("<" + CODES[dtype], weight)
    except OverflowError:  # struct refuses what IEEE 754 rounds to infinity
        return struct.pack("<" + CODES[dtype], math.copysign(math.inf, weight))


def reconstruct(
    q: list[int], flips: bitarray, base: Iterator[float], scale: bytes, offset: bytes, dtype: str, *,
    added: list[float] | None = None, flush: bool = False,
) -> bytes:  # fmt: skip
    """Section 12; `added` are the values of [R-07], `flush` asks for [R-06]."""
    scales, offsets = unpack(scale, "F32"), unpack(offset, "F32")
    need(all(s == 0 or 2.0**-64 <= abs(s) <= 2.0**64 for s in scales), "R-02", "scale")
    need(all(o == 0 or 2.0**-40 <= abs(o) <= 2.0**16 for o in offsets), "R-02", "offset")
    result = bytearray()
    for i, (magnitude, flip, b) in enumerate(zip(q, flips, base, strict=True)):
        s, o = (values[i // (len(q) // len(values))] for values in (scales, offsets))  # rows are channels
        weight = f32(f32(s * f32(magnitude - o)) * b) * (-1 if flip else 1) if magnitude else 0.0
        weight = weight if added is None else f32(added[i] + weight)
        weight = 0.0 if flush and abs(weight) < 2.0**-126 else weight
        result += narrow(weight or 0.0, dtype)  # no -0
    return bytes(result)


def origin_values(data: bytes, dtype: str) -> list[float]:
    """Values of a tensor of the base, [S-06]."""
    need(dtype in ("F16", "BF16", "F32", "F64"), "S-06", f"dtype {dtype}")
    wide = "F64" if dtype == "F64" else "F32"
    values = [f32_or_infinity(x) for x in unpack(widen(data, dtype, wide), wide)]
    need(all(map(math.isfinite, values)), "S-06", "not finite")
    return [0.0 if abs(x) < 2.0**-126 else x for x in values]


def f32_or_infinity(x: float) -> float:
    try:
        return f32(x)
    except OverflowError:
        return math.copysign(math.inf, x)


def restore(folded: bytes, origin: bytes, dtype: str) -> bytes:
    """[R-08]: elements from the differences of their bits."""
    width, out = WIDTH[dtype], bytearray()
    for i in range(0, len(folded), width):
        z, old = (int.from_bytes(data[i : i + width], "little") for data in (folded, origin))
        d = -(z + 1 >> 1) if z & 1 else z >> 1
        out += (old + d & (1 << 8 * width) - 1).to_bytes(width, "little")
    need(dtype != "BOOL" or set(out) <= {0, 1}, "F-04", "BOOL other than 0 and 1")
    return bytes(out)


def coarser(scale: bytes, offset: bytes, missing: int, *, trellis: bool) -> tuple[bytes, bytes]:
    """[R-09]: scale and offset where so many planes are missing."""
    if not missing:
        return scale, offset
    step, middle = 2**missing, 7 / 16 * (2**missing - 1)
    if trellis:
        step, middle = 2 * step, 2 * middle - 1 / 2
    offsets = [f32(o - middle) / step for o in unpack(offset, "F32")]
    scales = [s * step for s in unpack(scale, "F32")]
    pack = [struct.pack(f"<{len(v)}f", *v) for v in (scales, [o if abs(o) >= 2.0**-40 else 0.0 for o in offsets])]
    return pack[0], pack[1]
