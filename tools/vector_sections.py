"""Vectors of single sections of the specification, from the reference implementations; tools/vectors.py writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from smask import (
    bases,
    bitcoding,
    bytemodel,
    floats,
    integrity,
    philox,
    planes,
    rangecoding,
    reconstruction,
    records,
)
from smask.bitcoding import Bits
from smask.coded import CodedTensor
from smask.frames import MAGIC, compress


def packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(bool).ravel(), bitorder="little")


def hexed(tensor: torch.Tensor) -> str:
    return bytes(integrity.raw_bytes(tensor).numpy()).hex()


def philox_text() -> str:
    lines = [
        "# kat: counter, key, expected, from kat_vectors of Random123; words: seed stream start, then 32-bit words"
    ]
    lines += [" ".join(("kat", *row)) for row in philox.KNOWN_ANSWERS]
    for seed, stream, start in (
        (0, 0, 0),
        (1, 2, 3),
        (2**64 - 1, 2**32 - 1, 2**33 + 1),
        (0x0123456789ABCDEF, 42, 2**40 - 2),
    ):
        words = philox.words_reference(seed, stream, start=start, n_words=9).tolist()
        lines.append(f"words {seed} {stream} {start} " + " ".join(f"{word & philox.MASK:08x}" for word in words))
    return "\n".join(lines) + "\n"


def bases_vectors() -> list[dict[str, Any]]:
    return [
        {"base": base, "seed": seed, "stream": stream, "start": start,
         "float32_le": hexed(bases.base_reference(base, seed, stream=stream, start=start, n_weights=n))}
        for base in (*records.SEEDED_BASES, "one")
        for seed, stream, start, n in ((0, 0, 0, 40), (2**63 + 5, 7, 33, 37))
    ]  # fmt: skip


def plane_cases() -> Iterator[tuple[list[np.ndarray], np.ndarray | None, int]]:
    random = np.random.default_rng(1)
    for n, n_planes, flip in ((1, 1, False), (13, 1, True), (40, 3, False), (77, 4, True), (8, 2, True)):
        magnitudes = random.geometric(0.4, n) - 1 & (1 << n_planes) - 1
        bits = [packed(magnitudes >> p & 1) for p in reversed(range(n_planes))]
        yield bits, packed((random.random(n) < 0.5) & (magnitudes > 0)) if flip else None, n


def planes_vectors() -> list[dict[str, Any]]:
    return [
        {"n_weights": n, "planes": [plane.tobytes().hex() for plane in bits], "flip": None if flip is None else flip.tobytes().hex(),
         "sections": [{"plane": plane, "kind": kind, "n_bits": section.n_bits, "bits": section.packed.tobytes().hex()}
                      for plane, kind, section in planes.sections_reference(bits, flip, n)]}
        for bits, flip, n in plane_cases()
    ]  # fmt: skip


def bitcoding_vectors() -> dict[str, Any]:
    random = np.random.default_rng(2)
    accept = []
    for n, density in ((0, 0.0), (1, 1.0), (9, 0.0), (1000, 0.5), (1000, 0.02), (3000, 0.001), (777, 0.97)):
        bits = Bits(packed(random.random(n) < density), n)
        raw, gaps = bits.packed.tobytes(), bitcoding.gaps_reference(bits)
        blobs = {"raw": raw, "zstd": compress(raw, level=19), "gap-zstd": compress(gaps, level=19)}
        accept.append({"n_bits": n, "bits": raw.hex(), "blobs": {coding: blob.hex() for coding, blob in blobs.items()}})
    accept.append({"n_bits": 16, "bits": "0102", "blobs": {"zstd": with_window(27, b"\x01\x02").hex()}})
    frame, empty = compress(b"\x01\x02", level=19), compress(b"", level=19)
    reject = [
        ("raw", 9, b"\xff\x02", "B-01"), ("zstd", 9, compress(b"\xff\x02", level=19), "B-01"),
        ("raw", 9, b"\xff", "B-02"), ("raw", 9, b"\xff\x01\x00", "B-02"), ("zstd", 24, frame, "B-03"),
        ("zstd", 16, frame[:-1], "Z-01"), ("zstd", 16, frame + b"\x00", "Z-01"), ("zstd", 16, b"", "Z-01"),
        ("zstd", 16, frame[:-1] + bytes([frame[-1] ^ 1]), "Z-01"), ("gap-zstd", 4, frame, "B-05"), ("gap-zstd", 1, frame, "B-07"),
        ("gap-zstd", 300, compress(b"\x01\xff", level=19), "B-06"),
        ("gap-zstd", 255, compress(b"\xff\x00", level=19), "B-05"),
        # Empty content, checksum wrong; empty content, cut; a dictionary-id field of zero.
        ("gap-zstd", 9, empty[:-1] + bytes([empty[-1] ^ 1]), "Z-01"), ("gap-zstd", 9, empty[:6], "Z-01"),
        ("zstd", 16, frame[:4] + bytes([frame[4] | 1, 0]) + frame[5:], "Z-01"),
        # A skippable frame declares no content; a frame without checksum is not one of ours.
        ("zstd", 16, bytes.fromhex("502a4d1802000000") + b"ab", "Z-01"),
        ("zstd", 8, bytes.fromhex("28b52ffd200109000041"), "Z-01"),
        # Windows of more than 2**27 bytes: the next that a header can name, and one that no zstd reads.
        ("zstd", 16, with_window(27, b"\x01\x02", eighths=1), "Z-01"), ("zstd", 0, with_window(28, b""), "Z-01"),
        ("gap-zstd", 9, with_window(41, b""), "Z-01"),
        # A section that is no plane of a tensor has no contexts.
        ("range", 8, bytes.fromhex("0000000000"), "E-05"),
    ]  # fmt: skip
    return {
        "accept": accept,
        "reject": [
            {"coding": coding, "n_bits": n, "blob": blob.hex(), "clause": clause} for coding, n, blob, clause in reject
        ],
    }


def with_window(log: int, content: bytes, *, eighths: int = 0) -> bytes:
    """A frame of one raw block whose header names a window of 2**log bytes and so many eighths more."""
    head = bytes([0b1000_0100, log - 10 << 3 | eighths]) + len(content).to_bytes(4, "little")
    return MAGIC + head + (len(content) << 3 | 1).to_bytes(3, "little") + content + compress(content, level=19)[-4:]


def floats_vectors() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    cases = []
    for widths in ((2, 2), (4, 2, 8, 1), (1,), ()):
        cases.append([random.integers(0, 256, (3 + n, width), dtype=np.uint8) for n, width in enumerate(widths)])
    for shapes in (
        ((40, 2), (40, 2), (0, 4), (40, 2), (10, 2), (10, 2)), ((9, 4), (9, 4), (1, 8), (30, 1), (30, 4)),
        ((7, 2), (7, 2), (8, 2), (8, 2)), ((4096, 1),), ((4097, 1), (3, 2)),
    ):  # fmt: skip
        values = [random.integers(0, 8, shape, dtype=np.uint8) + np.uint8(120) for shape in shapes]
        for value in values:
            value[::3] = 0
        cases.append(values)
    for shapes in (((120, 2),) * 3, ((64, 4), (64, 2), (64, 8))):  # all contexts, or nearly
        cases.append([random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes])
        for value in cases[-1]:
            value[random.random(len(value)) < 0.3] = 0
    return [
        {
            "values": [{"n_bytes": value.shape[1], "bytes": value.tobytes().hex()} for value in values],
            "byte_planes": [plane.packed.tobytes().hex() for plane in floats.byte_planes(values)],
            "ranged": ranged(values),
        }
        for values in cases
    ]


def ranged(values: list[np.ndarray]) -> list[str | None]:
    """Blobs of byte planes by the reference of the coding ``range``, None where that takes no planes so long."""
    planes, higher, blobs = floats.byte_planes(values), floats.Higher([value.shape for value in values]), []
    for byte, plane in zip(reversed(range(len(planes))), planes, strict=True):
        make = higher.context(byte)
        if make:
            known, bits = make(), np.unpackbits(plane.packed, bitorder="little").view(bool)
            model = bytemodel.bytes_reference(known.above, known.partners)
            order = [8 * i + j for first in range(0, len(plane.packed), 8)
                     for j in reversed(range(8)) for i in range(first, min(first + 8, len(plane.packed)))]  # fmt: skip
            bits = bits[np.array(order, np.int64)]
            blobs.append(rangecoding.encode_reference(bits, rangecoding.driven(model, bits)).hex())
        else:
            blobs.append(None)
        higher.see(byte, plane.packed)
    return blobs


def coded_cases() -> Iterator[tuple[int, CodedTensor]]:
    random = np.random.default_rng(4)
    for seed, base, shape, n_planes, flip, axis, offset, dtype in (
        (0, "signed", (3, 5), 1, False, "channel", None, torch.float32),
        (5, "signed", (4, 3, 3, 3), 1, True, "channel", 0.25, torch.float32),
        (2**64 - 1, "uniform", (7, 11), 3, True, "tensor", 0.4, torch.bfloat16),
        (9, "normal", (33,), 2, False, "channel", None, torch.float16),
        (9, "signed", (6, 9), 5, True, "channel", 0.5, torch.float64),
        (1, "signed", (2, 4), 1, False, "negative", None, torch.float32),
        (1, "normal", (5, 0), 1, True, "tensor", None, torch.float32),
        (0, "one", (5, 3), 2, True, "channel", 0.25, torch.float32),
    ):
        n = int(np.prod(shape))
        magnitudes = random.geometric(0.3, n) - 1 & (1 << n_planes) - 1
        scale = torch.from_numpy(random.uniform(0.01, 2, 1 if axis == "tensor" else shape[0]).astype(np.float32))
        yield (
            seed,
            CodedTensor(
                shape=shape,
                stream=int(random.integers(0, 2**32)) if base != "one" else 0,
                planes=tuple(torch.from_numpy(packed(magnitudes >> p & 1)) for p in reversed(range(n_planes))),
                scale=scale * torch.tensor([-1.0, 0.0]) if axis == "negative" else scale,
                base=base,
                flip=torch.from_numpy(packed((random.random(n) < 0.5) & (magnitudes > 0))) if flip else None,
                offset=None if offset is None else torch.tensor([offset]),
                dtype=dtype,
            ),
        )


def reconstruction_vectors() -> list[dict[str, Any]]:
    return [
        {"seed": seed, "base": coded.base, "stream": coded.stream, "shape": list(coded.shape),
         "dtype": integrity.NAME_OF_DTYPE[coded.dtype], "planes": [hexed(plane) for plane in coded.planes],
         "flip": None if coded.flip is None else hexed(coded.flip), "scale": hexed(coded.scale),
         "offset": None if coded.offset is None else hexed(coded.offset),
         "weights": hexed(reconstruction.reconstruct_reference(coded, seed))}
        for seed, coded in coded_cases()
    ]  # fmt: skip
