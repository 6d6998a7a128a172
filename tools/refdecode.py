"""Reference decoder of .smask files, written from spec/smask-1.md alone: simple, exact and slow."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace as Record
from typing import Any

from bitarray import bitarray
from zstandard import DICT_TYPE_RAWCONTENT, ZstdCompressionDict

from refbases import base_values
from referrors import OverLimit, Refused, Unsupported, need
from refmanifest import MAX_MANIFEST, read_manifest
from refsections import Planes, decode_section, inflate
from refvalues import join_byte_planes, plain_values, reconstruct, widen

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, little-endian bytes
DICTIONARY = Path(__file__).resolve().parents[1] / "src/smask/data/manifest.dict"
DICTIONARY_SHA256 = "039ca2d1f49478f9853977c9fe3cd06f09573ba9c0c529234f43b68f4311fbb9"


def manifest_dictionary() -> ZstdCompressionDict:
    data = DICTIONARY.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DICTIONARY_SHA256, "manifest.dict is damaged"
    return ZstdCompressionDict(data, dict_type=DICT_TYPE_RAWCONTENT)


def check_manifest_size(size: int) -> None:
    need(size <= MAX_MANIFEST, "L-01", f"manifest of {size} bytes", OverLimit)


def open_file(data: bytes) -> tuple[Record, int]:
    """Manifest and place of the first blob, after all checks of sections 5 and 6."""
    need(data[:6] == b"\x89SMASK", "C-01", "not an .smask file")
    need(len(data) >= 11, "C-02", f"{len(data)} bytes")
    need(data[6] == 1, "C-06", f"version {data[6]}", Unsupported)
    start = 11 + int.from_bytes(data[7:11], "little")
    need(start <= len(data), "C-03", "manifest frame beyond the file")
    manifest = read_manifest(inflate(data[11:start], check_manifest_size, manifest_dictionary()))
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
                state.read_values(r.width, section)
    tensors = {}
    for r, state in zip(m.tensors, states, strict=True):
        if r.same:
            values = tensors[r.same][2]
        elif r.width:
            values = plain_values(state.stored(r.width), r.stored, r.dtype)
        elif r.planes:
            scale, offset = [widen(next(arrays), stored, "F32") for stored, _ in r.values] + [bytes(4)] * (not r.offset)
            base = base_values(r.base, m.seed, r.stream, 0, r.size)
            values = reconstruct(state, base, scale, offset, r.dtype)
        else:
            values = plain_values(next(arrays), r.stored, r.dtype)
        tensors[r.name] = (r.dtype, tuple(r.shape), values)
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


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: refdecode.py FILE.smask", file=sys.stderr)
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
