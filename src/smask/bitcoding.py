"""Bits to bytes and back: ``raw``, ``zstd``, ``gap-zstd`` and ``range``; the smallest wins. No torch.

Bit i of a section lies in byte ``i >> 3`` at position ``i & 7``; tail bits are zero.

========== =======================================================================================
coding     bytes of the blob
========== =======================================================================================
raw        the packed bits
zstd       one zstd frame of the packed bits
gap-zstd   one zstd frame of gap bytes: a byte below 255 is that many zeros and a one, the byte 255
           is 255 zeros; zeros after the last one are not written
range      bits coded at what is known of them, see :mod:`smask.contexts` and :mod:`smask.bytemodel`
========== =======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from bitarray import bitarray

from . import frames
from .errors import FormatError, UnsupportedError
from .rangecoding import Booleans
from .records import CODINGS

Packed: TypeAlias = npt.NDArray[np.uint8]
ESCAPE = 255

# Above this density packed bits beat gaps on i.i.d. bits; large sections are then not tried as gaps.
DENSEST_GAPS = 0.25
# Below this density gaps beat packed bits on i.i.d. bits; a quick search then does without the latter.
SPARSEST_PACKED = 0.15
# Below this density gaps have many escapes; at 0.002 the fast coder is 3 % behind the slow one on i.i.d. bits.
SPARSEST_FAST = 0.006
# A section this much larger than the smallest at the fast level of zstd stays so in quick work.
FAR = 1.03
# Up to this many bytes the slow levels of zstd are worth their time; up to fewer on byte planes, most of which are
# mantissas that nothing compresses: there the fast way costs 0.1 % of ResNet-20 and takes a tenth of the time.
N_SMALL = 1 << 20
N_SMALL_BYTEWISE = 1 << 12
# The like for the planes of a lossy conversion, which is made several times over.
N_SMALL_QUICK = 1 << 13
# A larger byte plane is tried at the slow level if matches, which the level 3 looks for, take off this part of it.
WORTHWHILE_MATCHES = 0.02
# A blob of the coding ``range`` may hold no more bits a byte: what a file can ask a reader to do goes by its size.
MOST_BITS_A_BYTE = 1 << 10
# Bits of one working buffer: booleans of this many bits stay in the second-level cache.
N_CHUNK_BITS = 1 << 19


@dataclass(frozen=True, eq=False)
class Bits:
    """Packed bits: ``packed`` uint8 [ceil(n_bits / 8)] with zero tail bits."""

    packed: Packed
    n_bits: int

    @property
    def n_ones(self) -> int:
        """Number of ones."""
        return int(np.bitwise_count(self.packed).sum(dtype=np.int64))


class Known(Protocol):
    """What is known where a section begins, for the coding ``range``: a model of its bits."""

    def encode(self, bits: Booleans) -> bytes:
        """Bytes for the bits of the section."""
        ...

    def decode(self, blob: bytes | memoryview, *, where: str) -> Booleans:
        """The bits again."""
        ...


def entropy_bytes(n_ones: int, n_bits: int) -> float:
    """Zero-order entropy of ``n_bits`` independent bits of which ``n_ones`` are one, in bytes."""
    if n_ones in (0, n_bits):
        return 0.0
    density = n_ones / n_bits
    return -n_bits * (density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8


def entropy_of_bytes(plane: Packed) -> float:
    """Zero-order entropy of independent bytes with the frequencies of these, in bytes."""
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(1, len(plane)))).sum() / 8) + 0.0


def gaps_reference(bits: Bits) -> bytes:
    """Gap bytes of a section, one bit at a time."""
    array = bitarray(endian="little")
    array.frombytes(bits.packed.tobytes())
    gaps, last = bytearray(), -1
    for position in array.search(bitarray("1")):
        escapes, gap = divmod(position - last - 1, ESCAPE)
        gaps += bytes([ESCAPE]) * escapes + bytes([gap])
        last = position
    return bytes(gaps)


def bits_from_gaps_reference(gaps: bytes, n_bits: int, *, where: str) -> Bits:
    """Inverse of :func:`gaps_reference`, one gap at a time."""
    array = bitarray(n_bits, endian="little")
    array.setall(0)
    position = 0
    for gap in gaps:
        position += gap
        if gap == ESCAPE:
            continue
        if position >= n_bits:
            raise FormatError("B-05", where, f"a one at bit {position}", f"ones below bit {n_bits}")
        array[position] = 1
        position += 1
    if gaps and gaps[-1] == ESCAPE:
        raise FormatError("B-06", where, "gaps that end in an escape", "nothing after the last one")
    return Bits(np.frombuffer(array.tobytes(), np.uint8), n_bits)


def gaps_fast(bits: Bits) -> bytes:
    """Vectorised :func:`gaps_reference`: positions of ones chunk by chunk, differences, escapes by repetition."""
    parts, last = [], -1
    step = N_CHUNK_BITS // 8
    for start in range(0, len(bits.packed), step):
        ones = np.flatnonzero(np.unpackbits(bits.packed[start : start + step], bitorder="little").view(bool))
        if not len(ones):
            continue
        ones += 8 * start
        # The first difference is taken against the last one of the chunk before.
        gaps = np.empty_like(ones)
        gaps[0] = ones[0] - last - 1
        np.subtract(ones[1:], ones[:-1], out=gaps[1:])
        gaps[1:] -= 1
        last = int(ones[-1])
        if int(gaps.max()) < ESCAPE:
            parts.append(gaps.astype(np.uint8))
            continue
        escapes, rest = np.divmod(gaps, ESCAPE)
        out = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
        out[np.cumsum(escapes + 1) - 1] = rest
        parts.append(out)
    return np.concatenate(parts).tobytes() if parts else b""


def bits_from_gaps_fast(gaps: bytes, n_bits: int, *, where: str) -> Bits:
    """Vectorised :func:`bits_from_gaps_reference`: running sums, scattered into booleans, packed chunk by chunk."""
    packed = np.zeros(-(-n_bits // 8), np.uint8)
    codes = np.frombuffer(gaps, np.uint8)
    position = 0
    # Few codes a chunk where the ones are rare, so that the booleans of a chunk stay small.
    mean_advance = max(1, n_bits // max(1, len(codes)))
    step = max(64, N_CHUNK_BITS // min(mean_advance, ESCAPE))
    for start in range(0, len(codes), step):
        chunk = codes[start : start + step]
        literal = chunk != ESCAPE
        ends = np.cumsum(chunk, dtype=np.int64)
        if literal.all():
            ends += np.arange(len(chunk))
            ones, advance = ends, int(ends[-1]) + 1
        else:
            n_literals = np.cumsum(literal, dtype=np.int64)
            ones = (ends + n_literals - 1)[literal]
            advance = int(ends[-1] + n_literals[-1])
        first_byte = position >> 3
        if len(ones):
            ones += position - 8 * first_byte
            if int(ones[-1]) + 8 * first_byte >= n_bits:
                beyond = int(ones[np.searchsorted(ones, n_bits - 8 * first_byte)]) + 8 * first_byte
                raise FormatError("B-05", where, f"a one at bit {beyond}", f"ones below bit {n_bits}")
            booleans = np.zeros(int(ones[-1]) + 1, bool)
            booleans[ones] = True
            piece = np.packbits(booleans, bitorder="little")
            packed[first_byte : first_byte + len(piece)] |= piece
        position += advance
    if len(codes) and int(codes[-1]) == ESCAPE:
        raise FormatError("B-06", where, "gaps that end in an escape", "nothing after the last one")
    return Bits(packed, n_bits)


def encode(
    bits: Bits, *, bytewise: bool = False, thorough: bool = True, context: Callable[[], Known] | None = None
) -> tuple[str, bytes]:
    """Codes a section in the smallest of the codings.

    Ties go to the earlier coding of :data:`smask.records.CODINGS`. The choice depends on the bits alone.

    Args:
        bits: Any number of bits.
        bytewise: Whether the section is a byte plane; its bits then say little of what its bytes compress to.
        thorough: Whether sections above :data:`N_SMALL_QUICK` bytes are tried at slow levels too, and small ones in
            every coding, whatever their density says.
        context: Makes what is known where the section begins, for the coding ``range``; None to do without it.

    Returns:
        Coding id and blob.
    """
    raw = bits.packed.tobytes()
    if bytewise and len(raw) > N_SMALL_BYTEWISE:
        return _encode_large_byte_plane(raw)
    n_ones = bits.n_ones
    density = n_ones / bits.n_bits if bits.n_bits else 0.0
    small = len(raw) <= (N_SMALL if thorough else N_SMALL_QUICK)
    entropy = entropy_of_bytes(bits.packed) if bytewise else entropy_bytes(n_ones, bits.n_bits)
    skewed = entropy < 0.999 * len(raw)
    candidates = [("raw", raw)]
    if context is not None and bits.n_bits:
        booleans = np.unpackbits(bits.packed, count=bits.n_bits, bitorder="little").view(bool)
        blob = context().encode(booleans)
        if bits.n_bits <= MOST_BITS_A_BYTE * len(blob):
            candidates.append(("range", blob))

    def compressed(coding: str, content: bytes, slow: bool) -> None:
        for level in (None, 19) if slow else (None,):
            candidates.append((coding, frames.compress(content, level=level)))
            # Slow levels find what repeats; what is far from the smallest without them is not worth their time.
            if not thorough and len(candidates[-1][1]) > FAR * min(len(blob) for _, blob in candidates):
                break

    if (small and thorough) or (skewed and (thorough or bytewise or density > SPARSEST_PACKED)):
        compressed("zstd", raw, small)
    if density <= DENSEST_GAPS or (small and density < 0.5 and (thorough or skewed)):
        gaps = gaps_fast(bits)
        # Rare ones need many escapes, whose runs only the slow levels code well; there are few bytes then.
        compressed("gap-zstd", gaps, len(gaps) <= (N_SMALL if thorough else N_SMALL_QUICK) or density < SPARSEST_FAST)
    return min(candidates, key=lambda candidate: (len(candidate[1]), CODINGS.index(candidate[0])))


def _encode_large_byte_plane(raw: bytes) -> tuple[str, bytes]:
    blobs = [frames.compress(raw, level=level) for level in (None, 3)]
    if len(blobs[1]) < (1 - WORTHWHILE_MATCHES) * len(blobs[0]):
        blobs.append(frames.compress(raw, level=19))
    smallest = min(blobs, key=len)
    return ("zstd", smallest) if len(smallest) < len(raw) else ("raw", raw)


def decode(
    blob: bytes | memoryview, coding: str, *, n_bits: int, where: str, context: Callable[[], Known] | None = None
) -> Bits:
    """Inverse of :func:`encode`.

    Args:
        blob: Bytes of the blob.
        coding: Its id.
        n_bits: Bits that the section must have; already checked against the limits.
        where: Name used in errors.
        context: Makes what is known where the section begins; None where it has no coding ``range``.

    Raises:
        FormatError: Damage, a wrong number of bits, ones beyond the end, tail bits that are not zero.
        UnsupportedError: An unknown coding.
    """
    n_bytes = -(-n_bits // 8)

    def exactly(declared: int) -> None:
        if declared != n_bytes:
            raise FormatError("B-03", where, f"{declared} bytes", f"{n_bytes} bytes for {n_bits} bits")

    def no_more_gaps_than_bits(declared: int) -> None:
        if declared > n_bits:
            raise FormatError("B-07", where, f"{declared} gap bytes", f"at most {n_bits} for {n_bits} bits")

    if coding == "gap-zstd":
        return bits_from_gaps_fast(frames.expand(blob, where=where, check=no_more_gaps_than_bits), n_bits, where=where)
    if coding == "range":
        if context is None:
            want = "planes of at most 2**22 weights or 2**12 bytes"
            raise FormatError("E-05", where, "coding range for stored values, or for too many", want)
        if n_bits > MOST_BITS_A_BYTE * len(blob):
            raise FormatError(
                "E-06", where, f"{n_bits} bits in {len(blob)} bytes", f"{MOST_BITS_A_BYTE} a byte at most"
            )
        found = context().decode(blob, where=where)
        return Bits(np.packbits(found, bitorder="little"), n_bits)
    if coding == "zstd":
        raw = frames.expand(blob, where=where, check=exactly)
    elif coding == "raw":
        raw = bytes(blob)
        if len(raw) != n_bytes:
            raise FormatError("B-02", where, f"{len(raw)} bytes", f"{n_bytes} bytes for {n_bits} bits")
    else:
        raise UnsupportedError("coding", coding, CODINGS)
    if n_bits % 8 and raw[-1] >> n_bits % 8:
        raise FormatError("B-01", where, "tail bits that are set", "zero tail bits")
    return Bits(np.frombuffer(raw, np.uint8), n_bits)
