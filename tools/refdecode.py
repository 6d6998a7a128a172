"""Reference decoder of .smask files, written from spec/smask-1.md alone: simple, exact and slow."""

import hashlib
import json
import math
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace as Record
from typing import Any

from bitarray import bitarray
from bitarray.util import zeros
from zstandard import DICT_TYPE_RAWCONTENT, ZstdCompressionDict, ZstdDecompressor, ZstdError, get_frame_parameters

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, little-endian bytes
MAX_MANIFEST, MAX_TENSORS, MAX_ELEMENTS = 2**24, 2**16, 2**30
DICTIONARY = Path(__file__).resolve().parents[1] / "src/smask/data/manifest.dict"
DICTIONARY_SHA256 = "039ca2d1f49478f9853977c9fe3cd06f09573ba9c0c529234f43b68f4311fbb9"
NORMAL_SHA256 = "6621a18f629e82396c088501c1095eae46f6d8033b42db7b4158e0f4cf34a0ce"
CODES = {"BOOL": "B", "U8": "B", "I8": "b", "I16": "h", "I32": "i", "I64": "q"}  # of struct
CODES |= {"F16": "e", "BF16": "H", "F32": "f", "F64": "d"}
WIDTH = {dtype: struct.calcsize("<" + code) for dtype, code in CODES.items()}
WIDER = {"U8": "I16 I32 I64", "I8": "I16 I32 I64", "I16": "I32 I64", "I32": "I64"}
WIDER |= {"F16": "F32 F64", "BF16": "F32 F64", "F32": "F64"}


class Refused(Exception):  # noqa: N818
    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"{clause}: {message}")
        self.clause = clause


class Unsupported(Refused): ...


class OverLimit(Refused): ...


def need(ok: Any, clause: str, message: str, error: type[Refused] = Refused) -> None:
    if not ok:
        raise error(clause, message)


# Section 5: frames
def inflate(frame: bytes, check: Callable[[int], None], dictionary: ZstdCompressionDict | None = None) -> bytes:
    """The content of a frame, once `check` has passed its declared size."""
    need(len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "Z-01", "no zstd data frame")
    flags = frame[4]  # read here because zstd does not tell a dictionary id of 0 from none
    need(not flags & 3 and flags & 4 and flags & 0xE0, "Z-01", "dictionary id, no checksum or no content size")
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


def manifest_dictionary() -> ZstdCompressionDict:
    data = DICTIONARY.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DICTIONARY_SHA256, "manifest.dict is damaged"
    return ZstdCompressionDict(data, dict_type=DICT_TYPE_RAWCONTENT)


# Section 6: manifest
def parse_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(members)) == len(members), "M-02", "member twice")
    return dict(members)


def spell(value: Any) -> str:
    """The canonical text of a JSON value. repr has the fewest digits, but another threshold and other exponents."""
    if isinstance(value, dict):
        return "{" + ",".join([spell(name) + ":" + spell(value[name]) for name in sorted(value)]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([spell(item) for item in value]) + "]"
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    need(math.isfinite(value), "M-02", "number beyond binary64")
    digits, _, exponent = repr(value).partition("e")
    if not exponent or 1e-5 <= abs(value) < 1:
        return f"{Decimal(repr(value)):f}"
    return f"{digits}e{int(exponent)}"


def parse_manifest(text: bytes) -> dict[str, Any]:
    try:
        source = text.decode()
        no_constant = {"parse_constant": lambda name: need(False, "M-01", f"{name} is not JSON")}
        manifest = json.loads(source, object_pairs_hook=parse_object, **no_constant)
        need(isinstance(manifest, dict), "M-01", "not an object")
        need(spell(manifest) == source, "M-02", "not canonical")
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise Refused("M-01", str(error)) from error
    return manifest


def is_integer(value: Any, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def is_list(value: Any, item: Callable[[Any], bool], most: float = math.inf) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(item, value))


def is_pair(value: Any, second: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and second(value[1])


def is_parameter(value: Any) -> bool:
    return is_pair(value, lambda dtype: dtype in ("F16", "BF16", "F32"))


REQUIRED, ABSENT = object(), None
MANIFEST: dict[str, tuple[Callable[[Any], bool], Any]] = {  # field: type and range, default
    "arch": (lambda v: isinstance(v, dict), REQUIRED),
    "blobs": (lambda v: is_list(v, lambda blob: is_pair(blob, lambda size: is_integer(size, 0, 2**62))), REQUIRED),
    "digest": (lambda v: isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef"), REQUIRED),
    "meta": (lambda v: isinstance(v, dict) and all(isinstance(text, str) for text in v.values()), {}),
    "seed": (lambda v: is_integer(v, 0), ABSENT),  # M-08 has the upper end
    "tensors": (lambda v: is_list(v, lambda record: isinstance(record, dict)), REQUIRED),
}
RECORD: dict[str, tuple[Callable[[Any], bool], Any]] = {
    "name": (lambda v: isinstance(v, str) and 1 <= len(v) <= 512, REQUIRED),
    "shape": (lambda v: is_list(v, lambda dimension: is_integer(dimension, 0), 8), REQUIRED),
    "dtype": (lambda v: isinstance(v, str) and v in CODES, "F32"),
    "stored": (lambda v: isinstance(v, str) and v in CODES, ABSENT),
    "planes": (lambda v: is_integer(v, 1, 16), ABSENT),
    "base": (lambda v: isinstance(v, str), "signed"),
    "stream": (lambda v: is_integer(v, 0, 2**32 - 1), 0),
    "flip": (lambda v: isinstance(v, bool), False),
    "scale": (is_parameter, ABSENT),
    "offset": (is_parameter, ABSENT),
}


def check_fields(members: dict[str, Any], table: dict[str, tuple[Callable[[Any], bool], Any]]) -> Record:
    for field, (is_valid, default) in table.items():
        need(field in members or default is not REQUIRED, "M-03", f"no field {field}")
        need(field not in members or is_valid(members[field]), "M-03", f"type or range of {field}")
        need(field not in members or members[field] != default, "M-04", f"default of {field} spelled out")
    return Record(**{field: members.get(field, default) for field, (_, default) in table.items()})


def read_record(members: dict[str, Any]) -> Record:
    need(members.keys() <= RECORD.keys(), "M-10", "unknown record field", Unsupported)
    r = check_fields(members, RECORD)
    need(r.base in ("signed", "uniform", "normal"), "M-11", f"unknown base {r.base}", Unsupported)
    parameters = [pair for pair in (r.scale, r.offset) if pair]
    need(all(axis in ("tensor", "channel") for axis, _ in parameters), "M-11", "unknown axis", Unsupported)
    if r.planes is None:
        coded = members.keys() & {"base", "stream", "flip", "scale", "offset"}
        need(r.stored and not coded, "M-06", f"no `stored`, or {coded} in a plain record")
        need(r.stored == r.dtype or r.dtype in WIDER.get(r.stored, "").split(), "M-06", "stored dtype does not widen")
    else:
        need(r.scale and not r.stored, "M-07", "coded record without scale or with `stored`")
        need(r.dtype in ("F16", "BF16", "F32", "F64") and r.shape, "M-07", "coded integers or scalar")
    r.size, channels = math.prod(r.shape), r.shape[0] if r.shape else 1
    r.values = [(r.stored, r.size)]  # what section 11 holds for this record
    if r.planes:
        r.values = [(dtype, channels if axis == "channel" else 1) for axis, dtype in parameters]
    return r


def check_manifest_size(size: int) -> None:
    need(size <= MAX_MANIFEST, "L-01", f"manifest of {size} bytes", OverLimit)


def check_manifest(manifest: dict[str, Any]) -> Record:
    for field in manifest.keys() - MANIFEST.keys():
        ignorable = isinstance(manifest[field], dict) and manifest[field].get("must_understand") is False
        need(ignorable, "M-10", f"unknown field {field}", Unsupported)
    m = check_fields(manifest, MANIFEST)
    need(m.arch.get("kind", "external") == "external", "M-11", "unknown architecture kind", Unsupported)
    need(all(coding in ("raw", "zstd", "gap-zstd") for coding, _ in m.blobs), "M-11", "unknown coding", Unsupported)
    need(len(m.tensors) <= MAX_TENSORS, "L-01", "too many tensors", OverLimit)
    m.tensors = [read_record(members) for members in m.tensors]
    # A tensor of shape [n, 0] has no elements, but n scales: those count as well.
    elements = sum(max([r.size] + [count for _, count in r.values]) for r in m.tensors)
    need(elements <= MAX_ELEMENTS, "L-01", "too many elements", OverLimit)
    need(len({r.name for r in m.tensors}) == len(m.tensors), "M-05", "name twice")
    coded = [r for r in m.tensors if r.planes]
    need(m.seed is not None or not coded, "M-08", "no seed")
    need((m.seed or 0) < 2**64, "M-08", "seed of more than 64 bits")
    m.sizes = [(WIDTH[dtype], count) for r in m.tensors for dtype, count in r.values]
    m.byte_planes = max((width for width, count in m.sizes if count), default=0)
    sections = m.byte_planes + sum(r.planes * (2 + r.flip) - 1 for r in coded)
    need(len(m.blobs) == sections, "M-09", f"{len(m.blobs)} blobs for {sections} sections")
    return m


# Sections 7 and 8: generator and bases
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


# Section 9: planes
class Planes:
    """What the planes read so far say of the weights of a tensor; `planes` has them from the highest."""

    def __init__(self, size: int) -> None:
        self.significant, self.flips = zeros(size, "little"), zeros(size, "little")
        self.planes: list[bitarray] = []

    def read(self, flip: bool, section: Callable[[str, int], bitarray]) -> None:
        plane, still_open = zeros(len(self.flips), "little"), ~self.significant
        plane[still_open] = section("significance", still_open.count())
        new = plane.copy()
        if flip:
            self.flips[new] = section("flip", new.count())
        if self.planes:
            plane[self.significant] = section("refinement", self.significant.count())
        self.significant |= new
        self.planes.append(plane)


# Section 10: bit codings
def decode_section(coding: str, blob: bytes, n_bits: int) -> bitarray:
    n_bytes = (n_bits + 7) // 8
    if coding == "gap-zstd":  # a gap takes at least one bit
        return place_gaps(inflate(blob, lambda size: need(size <= n_bits, "Z-01", "more gaps than bits")), n_bits)
    if coding == "zstd":
        blob = inflate(blob, lambda size: need(size == n_bytes, "Z-01", f"{size} bytes for {n_bits} bits"))
    need(len(blob) == n_bytes, "B-02", f"{len(blob)} bytes for {n_bits} bits")
    bits = bitarray(blob, endian="little")
    need(not bits[n_bits:].any(), "B-01", "bits past the end")
    return bits[:n_bits]


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


# Section 11: floats
def join_byte_planes(sizes: list[tuple[int, int]], planes: int, section: Callable[[str, int], bitarray]) -> list[bytes]:
    """Arrays of (width, count), from byte planes that come highest first."""
    arrays = [bytearray(width * count) for width, count in sizes]
    for b in reversed(range(planes)):
        n_bytes = sum(count for width, count in sizes if width > b)
        plane = iter(section("bytes", 8 * n_bytes).tobytes())
        for array, (width, count) in zip(arrays, sizes, strict=True):
            if width > b:
                array[b::width] = bytes(islice(plane, count))
    return [bytes(array) for array in arrays]


def widen(data: bytes, source: str, target: str) -> bytes:
    if source == "BF16" != target:  # the upper half of binary32
        source, data = "F32", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    count = len(data) // WIDTH[source]
    values = struct.unpack(f"<{count}{CODES[source]}", data)
    return data if source == target else struct.pack(f"<{count}{CODES[target]}", *values)


# Section 12: reconstruction
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


def reconstruct(planes: Planes, base: Iterator[float], scale: bytes, offset: bytes, dtype: str) -> bytes:
    q = [0] * len(planes.flips)
    for plane in planes.planes:
        q = [2 * high + bit for high, bit in zip(q, plane, strict=True)]
    scales, offsets = ([x for (x,) in struct.iter_unpack("<f", data)] for data in (scale, offset))
    need(all(s == 0 or 2.0**-64 <= abs(s) <= 2.0**64 for s in scales), "R-02", "scale")
    need(all(o == 0 or 2.0**-40 <= abs(o) <= 2.0**16 for o in offsets), "R-02", "offset")
    result = bytearray()
    for i, (magnitude, flip, b) in enumerate(zip(q, planes.flips, base, strict=True)):
        s, o = (values[i // (len(q) // len(values))] for values in (scales, offsets))  # rows are channels
        weight = f32(f32(s * f32(magnitude - o)) * b) * (-1 if flip else 1) if magnitude else 0.0
        result += narrow(weight or 0.0, dtype)  # no -0
    return bytes(result)


# Sections 4, 5 and 14: the file
def open_file(data: bytes) -> tuple[Record, int]:
    """Manifest and place of the first blob, after all checks of sections 5 and 6."""
    need(data[:6] == b"\x89SMASK", "C-01", "not an .smask file")
    need(len(data) >= 11, "C-02", f"{len(data)} bytes")
    need(data[6] == 1, "C-06", f"version {data[6]}", Unsupported)
    start = 11 + int.from_bytes(data[7:11], "little")
    need(start <= len(data), "C-03", "manifest frame beyond the file")
    manifest = check_manifest(parse_manifest(inflate(data[11:start], check_manifest_size, manifest_dictionary())))
    length = start + sum(size for _, size in manifest.blobs) + 32
    need(len(data) == length, "C-04", f"{len(data)} bytes, should be {length}")
    need(hashlib.sha256(data[:-32]).digest() == data[-32:], "C-05", "sha256")
    return manifest, start


def decode_file(data: bytes) -> tuple[Record, dict[str, Tensor]]:
    m, place = open_file(data)
    blobs = iter(m.blobs)

    def section(_: str, n_bits: int) -> bitarray:
        nonlocal place
        coding, size = next(blobs)
        place += size
        return decode_section(coding, data[place - size : place], n_bits)

    arrays = iter(join_byte_planes(m.sizes, m.byte_planes, section))
    states = [Planes(r.size if r.planes else 0) for r in m.tensors]
    for p in reversed(range(16)):
        for r, state in zip(m.tensors, states, strict=True):
            if p < (r.planes or 0):
                state.read(r.flip, section)
    tensors = {}
    for r, state in zip(m.tensors, states, strict=True):
        values = [widen(next(arrays), stored, "F32" if r.planes else r.dtype) for stored, _ in r.values]
        if r.planes:
            base = base_values(r.base, m.seed, r.stream, 0, r.size)
            values[0] = reconstruct(state, base, values[0], values[1] if r.offset else bytes(4), r.dtype)
        tensors[r.name] = (r.dtype, tuple(r.shape), values[0])
    return m, tensors


def decode(data: bytes) -> dict[str, Tensor]:
    return decode_file(data)[1]


def digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, (dtype, shape, data) in tensors.items():
        total.update(f"{name}\0{dtype}\0{','.join(map(str, shape))}\0".encode() + data)
    return total.hexdigest()


def describe(tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": dtype, "shape": list(shape), "sha256": hashlib.sha256(data).hexdigest()}
        for name, (dtype, shape, data) in tensors.items()
    ]


# Section 20: vectors
def bits_of(text: str | None, n_bits: int) -> bitarray:
    return decode_section("raw", bytes.fromhex(text), n_bits) if text else zeros(n_bits, "little")


def words_case(count: int, *arguments: int) -> list[int]:
    return list(islice(words(*arguments), count))


def bases_case(v: dict[str, Any]) -> str:
    values = base_values(v["base"], v["seed"], v["stream"], v["start"], len(v["float32_le"]) // 8)
    return b"".join(narrow(value, "F32") for value in values).hex()


def planes_case(v: dict[str, Any]) -> tuple[list[bitarray], bitarray, list[dict[str, Any]]]:
    """Planes, flips, and the sections that were asked for."""
    state, queue, asked = Planes(v["n_weights"]), iter(v["sections"]), []

    def section(kind: str, n_bits: int) -> bitarray:
        bits = next(queue)["bits"]
        asked.append({"plane": len(v["planes"]) - 1 - len(state.planes), "kind": kind, "n_bits": n_bits, "bits": bits})
        return bits_of(bits, n_bits)

    for _ in v["planes"]:
        state.read(v["flip"] is not None, section)
    return state.planes, state.flips, asked


def floats_case(v: dict[str, Any]) -> list[str]:
    sizes = [(array["n_bytes"], len(array["bytes"]) // 2 // array["n_bytes"]) for array in v["values"]]
    queue = iter(v["byte_planes"])
    arrays = join_byte_planes(sizes, len(v["byte_planes"]), lambda _, n_bits: bits_of(next(queue), n_bits))
    return [array.hex() for array in arrays]


def reconstruction_case(v: dict[str, Any]) -> str:
    state, n = Planes(0), math.prod(v["shape"])
    state.planes, state.flips = [bits_of(plane, n) for plane in v["planes"]], bits_of(v["flip"], n)
    base = base_values(v["base"], v["seed"], v["stream"], 0, n)
    scale, offset = bytes.fromhex(v["scale"]), bytes.fromhex(v["offset"] or "00000000")
    return reconstruct(state, base, scale, offset, v["dtype"]).hex()


def bitcoding_case(coding: str, blob: str, n_bits: int) -> str:
    return decode_section(coding, bytes.fromhex(blob), n_bits).tobytes().hex()


def file_case(file: Path) -> tuple[bool, list[dict[str, Any]]]:
    m, tensors = decode_file(file.read_bytes())
    return digest(tensors) == m.digest, describe(tensors)


def refusal(v: dict[str, Any]) -> Any:
    """The outcome for a file to reject; None for what only a loader must refuse."""
    kinds = {"FormatError": "Refused", "IntegrityError": "Refused", "UnsupportedError": "Unsupported"}
    clause = "C-05" if v["error"] == "IntegrityError" else v["clause"]
    return (kinds.get(v["error"], "OverLimit"), clause) if v["by"] == "decoder" else None


def cases(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Kind, expected outcome, function and arguments."""

    def load(name: str) -> Any:
        return json.loads((folder / name).read_text())

    for kind, *line in map(str.split, (folder / "philox.txt").read_text().splitlines()):
        numbers = [int(x, 16) for x in line] if kind != "#" else []
        if kind == "kat":
            yield "philox.kat", numbers[6:], philox, numbers[:4], numbers[4:6]
        elif kind == "words":
            yield "philox.words", numbers[3:], words_case, len(line) - 3, *map(int, line[:3])
    yield from (("bases", v["float32_le"], bases_case, v) for v in load("bases.json"))
    for v in load("planes.json"):
        n = v["n_weights"]
        yield "planes", ([bits_of(p, n) for p in v["planes"]], bits_of(v["flip"], n), v["sections"]), planes_case, v
    for v in load("bitcoding.json")["accept"]:
        yield from (("bitcoding.accept", v["bits"], bitcoding_case, *blob, v["n_bits"]) for blob in v["blobs"].items())
    for v in load("bitcoding.json")["reject"]:
        yield "bitcoding.reject", ("Refused", v["clause"]), bitcoding_case, v["coding"], v["blob"], v["n_bits"]
    yield from (("floats", [array["bytes"] for array in v["values"]], floats_case, v) for v in load("floats.json"))
    yield from (("reconstruction", v["weights"], reconstruction_case, v) for v in load("reconstruction.json"))
    for name, tensors in load("accept/expected.json").items():
        yield "accept", (True, tensors), file_case, folder / "accept" / f"{name}.smask"
    for name, v in load("reject/expected.json").items():
        yield "reject", refusal(v), file_case, folder / "reject" / f"{name}.smask"


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or the kind and clause of the refusal. No error of another kind is ever expected."""
    try:
        return function(*arguments)
    except Refused as error:
        return type(error).__name__, error.clause if type(error) is Refused else None
    except Exception as error:
        return error


def check_vectors(folder: Path) -> dict[str, Any]:
    checked, failed = Counter(), []
    for kind, expected, *call in cases(folder):
        actual = outcome(*call)
        checked[kind] += 1
        if expected not in (None, actual) or isinstance(actual, Exception):
            failed.append(f"{kind} {call[1:]}: {actual!r:.200}")
    return {"checked": checked, "failed": failed}


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "--vectors":
        summary = check_vectors(Path(arguments[1]))
        print(json.dumps(summary, indent=1))
        return 1 if summary["failed"] else 0
    if len(arguments) != 1:
        print("usage: refdecode.py FILE.smask | --vectors FOLDER", file=sys.stderr)
        return 2
    try:
        m, tensors = decode_file(Path(arguments[0]).read_bytes())
    except Refused as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    matches = digest(tensors) == m.digest
    print(json.dumps({"tensors": describe(tensors), "digest": digest(tensors), "matches": matches}, indent=1))
    return 0 if matches else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
