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
from refbytes import KnownBytes
from refcontexts import Known
from referrors import OverLimit, Refused, Unsupported, need
from refmanifest import MAX_MANIFEST, WIDTH, read_manifest
from refsections import Planes, Sections, decode_section, inflate, trellis_magnitudes
from refvalues import (
    coarser,
    join_byte_planes,
    origin_values,
    plain_values,
    reconstruct,
    restore,
    silent_channels,
    widen,
)

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, little-endian bytes
DICTIONARY = Path(__file__).resolve().parents[1] / "spec/manifest.dict"
DICTIONARY_SHA256 = "039ca2d1f49478f9853977c9fe3cd06f09573ba9c0c529234f43b68f4311fbb9"


def manifest_dictionary() -> ZstdCompressionDict:
    data = DICTIONARY.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DICTIONARY_SHA256, "manifest.dict is damaged"
    return ZstdCompressionDict(data, dict_type=DICT_TYPE_RAWCONTENT)


def check_manifest_size(size: int) -> None:
    need(size <= MAX_MANIFEST, "L-01", f"manifest of {size} bytes", OverLimit)


def open_head(data: bytes) -> tuple[Record, int]:
    """Manifest and place of the first blob, after the checks of both."""
    need(data[:6] == b"\x89SMASK", "C-01", "not an .smask file")
    need(len(data) >= 11, "C-02", f"{len(data)} bytes")
    need(data[6] == 1, "C-06", f"version {data[6]}", Unsupported)
    start = 11 + int.from_bytes(data[7:11], "little")
    need(start <= len(data), "C-03", "manifest frame beyond the file")
    return read_manifest(inflate(data[11:start], check_manifest_size, manifest_dictionary())), start


def open_file(data: bytes) -> tuple[Record, int]:
    """Manifest and place of the first blob, after all checks of sections 5 and 6."""
    manifest, start = open_head(data)
    length = start + sum(size for _, size in manifest.blobs) + 32
    need(len(data) == length, "C-04", f"{len(data)} bytes, should be {length}")
    need(hashlib.sha256(data[:-32]).digest() == data[-32:], "C-05", "sha256")
    return manifest, start


class Missing(Exception):  # noqa: N818
    """A section at or past the end of a prefix."""


def planes_of(r: Record, parts: list[bytes]) -> Planes:
    """None read yet. Scales come first because sections have no bits of silent channels: [P-08]."""
    return Planes(tuple(r.shape), silent_channels(r, parts)) if r.planes else Planes((0,))


def read_in_order(m: Record, states: list[Planes], section: Sections) -> None:
    """Sections of [P-02]; stops at the first that is missing, with no part of a plane taken."""
    values = [(r, state) for r, state in zip(m.tensors, states, strict=True) if r.width]
    for _, state in values:
        state.read(False, section)
    for b in reversed(range(8)):
        for r, state in values:
            if b < r.width:
                state.read_values(section)
    for p in reversed(range(16)):
        for r, state in zip(m.tensors, states, strict=True):
            if p < (r.planes or 0) and not r.width:
                before = state.significant.copy(), state.flips.copy()
                try:
                    state.read(r.flip, section)
                except Missing:
                    state.significant, state.flips = before
                    raise


def decode_tasks(
    data: bytes, base: dict[str, Tensor] | None = None, *, prefix: bool = False
) -> tuple[Record, list[dict[str, Tensor]]]:
    """The tensors of each task of a file, or of its one model; of a prefix the coarser ones."""
    m, place = open_head(data) if prefix else open_file(data)
    need(m.base_digest is None or (base is not None and base_digest(base) == m.base_digest), "I-03", "another base")
    blobs = iter(m.blobs)

    def section(_: str, n_bits: int, known: Known | KnownBytes | None = None) -> bitarray:
        nonlocal place
        coding, size = next(blobs)
        if place + size > len(data):
            raise Missing
        place += size
        return decode_section(coding, data[place - size : place], n_bits, known)

    try:
        arrays = iter(join_byte_planes(m.sizes, m.byte_planes, section))
    except Missing:
        raise Refused("P-05", "not even the floats") from None
    parameters = [[next(arrays) for _ in r.values] for r in m.tensors]
    states = [planes_of(r, parts) for r, parts in zip(m.tensors, parameters, strict=True)]
    try:
        read_in_order(m, states, section)
    except Missing:
        need(prefix, "C-04", "a section past the end")
    for r, state, parts in zip(m.tensors, states, parameters, strict=True):
        r.content = r.holder.content if r.same else tensor_of(m, r, state, parts, base or {})
    return m, [{r.name: (r.dtype, tuple(r.shape), r.content) for r in group} for group in m.groups]


def decode_file(
    data: bytes, base: dict[str, Tensor] | None = None, *, prefix: bool = False
) -> tuple[Record, dict[str, Tensor]]:
    """A file of one model, or the first of several."""
    m, tasks = decode_tasks(data, base, prefix=prefix)
    return m, tasks[0]


def matches(m: Record, tasks: list[dict[str, Tensor]]) -> bool:
    """Whether the tensors are those that the digests of the file are of: [I-01], [T-03]."""
    digests = [digest(tensors) for tensors in tasks]
    if not m.tasks:
        return digests == [m.digest]
    each = all(full[:16] == task.digest for full, task in zip(digests, m.tasks, strict=True))
    return each and hashlib.sha256("".join(digests).encode()).hexdigest() == m.digest


def tensor_of(m: Record, r: Record, state: Planes, parts: list[bytes], base: dict[str, Tensor]) -> bytes:
    origin_dtype, origin = r.dtype, b""
    if r.of is not None:
        origin_dtype, shape, origin = base.get(r.of or r.name, ("", (), b""))
        levels = r.planes and not r.width
        need(shape == tuple(r.shape) and (levels or origin_dtype == r.dtype), "I-04", "no such tensor in the base")
        need(origin_dtype, "I-04", "no such tensor in the base")
    if r.copied:
        return origin
    if r.width:
        whole = len(state.value_bytes) == r.width
        if not whole and (r.of is not None or not state.value_bytes or "F" not in r.stored):
            return origin if r.of is not None else bytes(WIDTH[r.dtype] * r.size)
        stored = state.stored(r.width)
        return plain_values(stored, r.stored, r.dtype) if r.of is None else restore(stored, origin, r.dtype)
    if not r.planes:
        return plain_values(parts[0], r.stored, r.dtype) if r.of is None else restore(parts[0], origin, r.dtype)
    scale, offset = [widen(part, stored, "F32") for part, (stored, _) in zip(parts, r.values, strict=True)] + [
        bytes(4)
    ] * (not r.offset)
    missing = r.planes - len(state.planes) if state.planes else 0
    scale, offset = coarser(scale, offset, missing, trellis=r.trellis)
    magnitudes, flips = state.spread()
    q = trellis_magnitudes(magnitudes) if r.trellis and not missing else magnitudes
    over = None if r.of is None else origin_values(origin, origin_dtype)
    masked = r.base == "file"
    numbers = over if masked else base_values(r.base, m.seed, r.stream, 0, r.size)
    return reconstruct(
        q, flips, iter(numbers), scale, offset, r.dtype, added=None if masked else over, flush=over is not None
    )


def base_digest(base: dict[str, Tensor]) -> str:
    """[I-03], of tensors whose names no wrapper has changed."""
    return digest(dict(sorted(base.items())))


def decode(data: bytes, base: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return decode_file(data, base)[1]


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
    if len(arguments) not in (1, 2):
        print("usage: refdecode.py FILE.smask [BASE.smask]", file=sys.stderr)
        return 2
    try:
        base = decode(Path(arguments[1]).read_bytes()) if len(arguments) == 2 else None
        m, tasks = decode_tasks(Path(arguments[0]).read_bytes(), base)
    except Refused as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    out = [{"tensors": describe(tensors), "digest": digest(tensors)} for tensors in tasks]
    named = [{"task": task.name, **one} for task, one in zip(m.tasks, out, strict=False)]
    print(json.dumps((({"tasks": named}) if named else out[0]) | {"matches": matches(m, tasks)}, indent=1))
    return 0 if matches(m, tasks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
