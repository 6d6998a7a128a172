"""Sections: zstd frames (section 5), bit codings (section 10), and planes that follow from one another (section 9)."""

from collections.abc import Callable, Sequence
from itertools import islice
from math import prod

from bitarray import bitarray
from bitarray.util import zeros
from zstandard import ZstdCompressionDict, ZstdDecompressor, ZstdError, get_frame_parameters

from refbytes import KnownBytes, decode_bytes
from refcontexts import Known, decode_range
from referrors import Refused, need

Sections = Callable[..., bitarray]  # the next section, given its kind, number of bits and, but of values, what is known


def inflate(frame: bytes, check: Callable[[int], None], dictionary: ZstdCompressionDict | None = None) -> bytes:
    """The content of a frame, once `check` has passed its declared size."""
    need(len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "Z-01", "no zstd data frame")
    flags = frame[4]  # read here because zstd does not tell a dictionary id of 0 from none
    need(not flags & 3 and flags & 4 and flags & 0xE0, "Z-01", "dictionary id, no checksum or no content size")
    descriptor = 0 if flags & 0x20 else int.from_bytes(frame[5:6])
    need(8 + (descriptor & 7) << 7 + (descriptor >> 3) <= 2**27, "Z-01", "too large a window")
    try:
        size = get_frame_parameters(frame).content_size
        check(size)
        zstd = ZstdDecompressor(dict_data=dictionary)
        return zstd.decompress(frame, allow_extra_data=False) if size else inflate_empty(zstd, frame)
    except ZstdError as error:
        raise Refused("Z-01", str(error)) from error


def inflate_empty(zstd: ZstdDecompressor, frame: bytes) -> bytes:
    """decompress() takes a declared size of 0 on trust; small pieces bound what a false one can yield."""
    stream = zstd.decompressobj()
    for start in range(0, len(frame), 64):
        need(not stream.eof and not stream.decompress(frame[start : start + 64]), "Z-01", "content or bytes after it")
    need(stream.eof and not stream.unused_data, "Z-01", "frame incomplete or bytes after it")
    return b""


def decode_section(coding: str, blob: bytes, n_bits: int, known: Known | KnownBytes | None = None) -> bitarray:
    n_bytes = (n_bits + 7) // 8
    if coding == "range":
        return decode_ranged(blob, n_bits, known)
    if coding == "gap-zstd":
        return place_gaps(inflate(blob, lambda size: need(size <= n_bits, "B-07", "more gaps than bits")), n_bits)
    if coding == "zstd":
        blob = inflate(blob, lambda size: need(size == n_bytes, "B-03", f"{size} bytes for {n_bits} bits"))
    need(len(blob) == n_bytes, "B-02", f"{len(blob)} bytes for {n_bits} bits")
    bits = bitarray(endian="little")
    bits.frombytes(blob)
    need(not bits[n_bits:].any(), "B-01", "bits past the end")
    return bits[:n_bits]


def decode_ranged(blob: bytes, n_bits: int, known: Known | KnownBytes | None) -> bitarray:
    need(known is not None, "E-05", "of stored values")
    of_bytes = isinstance(known, KnownBytes)
    size, most = (n_bits // 8, 2**12) if of_bytes else (len(known.open), 2**22)
    need(size <= most, "E-05", f"of {size} {'bytes' if of_bytes else 'weights'}")
    need(n_bits <= 1024 * len(blob), "E-06", f"{n_bits} bits in {len(blob)} bytes")
    return decode_bytes(blob, known) if of_bytes else decode_range(blob, known)


def place_gaps(gaps: bytes, n_bits: int) -> bitarray:
    bits, position = zeros(n_bits, "little"), 0
    for gap in gaps:
        position += gap
        if gap < 255:
            need(position < n_bits, "B-05", "one past the end")
            bits[position] = 1
            position += 1
    need(gaps[-1:] != b"\xff", "B-06", "gap bytes end in 255")
    return bits


class Planes:
    """What the planes read so far say of the weights of a tensor; `planes` has them from the highest. `silent` says of
    each channel whether it is; all but `spread` is of the other channels alone: [P-08]."""

    def __init__(self, shape: tuple[int, ...], silent: Sequence[bool] = ()) -> None:
        self.silent = silent
        self.shape = (shape[0] - sum(silent), *shape[1:]) if silent else shape
        size = prod(self.shape)
        self.significant, self.flips = zeros(size, "little"), zeros(size, "little")
        self.planes: list[bitarray] = []
        self.magnitudes = [0] * size  # or indices of a trellis
        self.value_bytes: list[bytes] = []

    def read(self, flip: bool, section: Sections) -> None:
        def bits(kind: str, weights: bitarray) -> bitarray:
            known = Known(kind, self.shape, self.magnitudes, self.flips, weights)
            return section(kind, weights.count(), known)

        plane, still_open = zeros(len(self.flips), "little"), ~self.significant
        plane[still_open] = bits("significance", still_open)
        new = plane.copy()
        if flip:
            self.flips[new] = bits("flip", new)
        if self.planes:
            plane[self.significant] = bits("refinement", self.significant)
        self.significant |= new
        self.add(plane)

    def add(self, plane: bitarray) -> None:
        self.planes.append(plane)
        self.magnitudes = [2 * high + bit for high, bit in zip(self.magnitudes, plane, strict=True)]

    def spread(self) -> tuple[list[int], bitarray]:
        """Magnitudes and flips of all weights of the record, zero in silent channels: [P-08]."""
        if not self.silent:
            return self.magnitudes, self.flips
        each, loud = prod(self.shape[1:]), zip(self.magnitudes, self.flips, strict=True)
        nothing = [(0, 0)] * each
        weights = [weight for silent in self.silent for weight in (nothing if silent else islice(loud, each))]
        return [q for q, _ in weights], bitarray([flip for _, flip in weights], endian="little")

    def read_values(self, section: Sections) -> None:
        self.value_bytes.append(section("values", 8 * self.significant.count()).tobytes())

    def stored(self, width: int) -> bytes:
        """The stored values, those of weights that are not significant with bytes of zero, and of others the middle
        of what bytes that are missing leave open."""
        for fill in [0x80, *[0] * width][: width - len(self.value_bytes)]:
            self.value_bytes.append(bytes([fill]) * self.significant.count())
        data, at = bytearray(width * len(self.flips)), [i for i, bit in enumerate(self.significant) if bit]
        for place, b in enumerate(reversed(range(width))):
            for i, byte in zip(at, self.value_bytes[place], strict=True):
                data[i * width + b] = byte
        return bytes(data)


def trellis_magnitudes(indices: list[int]) -> list[int]:
    """[J-01]"""
    lag, states = 8 * -(-len(indices) // 1024), []
    for i in range(len(indices)):
        near, parity, far = i - lag, i - 2 * lag, i - 3 * lag
        state = states[near] if near >= 0 else 0
        state ^= indices[parity] & 1 if parity >= 0 else 0
        states.append(state ^ (states[far] if far >= 0 else 0))
    return [2 * j - state if j else 0 for j, state in zip(indices, states, strict=True)]
