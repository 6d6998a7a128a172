"""Writes the vectors of the specification, or compares them with what this code would write.

    python tools/vectors.py            # exit 1 if a file of spec/vectors differs
    python tools/vectors.py --write    # after a deliberate change of the format, together with spec/smask-1.md

Blobs depend on the zstd release: compare with the versions in constraints.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smask
from smask import (
    bases,
    bitcoding,
    container,
    floats,
    integrity,
    manifest,
    named_nets,
    philox,
    planes,
    reconstruction,
    records,
)
from smask.bitcoding import Bits
from smask.dtypes import N_BYTES_OF_DTYPE
from smask.frames import compress
from smask.recipe import EXTERNAL, Recipe
from smask.reconstruction import CodedTensor

# Refused only by who builds the module.
LOADER_ONLY = ("import-me",)
ROOT = Path(__file__).parents[1] / "spec/vectors"


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
        for base in records.BASES
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
    ]  # fmt: skip
    return {
        "accept": accept,
        "reject": [
            {"coding": coding, "n_bits": n, "blob": blob.hex(), "clause": clause} for coding, n, blob, clause in reject
        ],
    }


def floats_vectors() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    out = []
    for widths in ((2, 2), (4, 2, 8, 1), (1,), ()):
        values = [random.integers(0, 256, (3 + index, width), dtype=np.uint8) for index, width in enumerate(widths)]
        out.append({
            "values": [{"n_bytes": value.shape[1], "bytes": value.tobytes().hex()} for value in values],
            "byte_planes": [plane.packed.tobytes().hex() for plane in floats.byte_planes(values)],
        })  # fmt: skip
    return out


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
    ):
        n = int(np.prod(shape))
        magnitudes = random.geometric(0.3, n) - 1 & (1 << n_planes) - 1
        scale = torch.from_numpy(random.uniform(0.01, 2, 1 if axis == "tensor" else shape[0]).astype(np.float32))
        yield (
            seed,
            CodedTensor(
                shape=shape,
                stream=int(random.integers(0, 2**32)),
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


def model_file(coded: dict[str, CodedTensor], plain: dict[str, torch.Tensor], *, seed: int, **recipe: Any) -> bytes:
    state = {name: reconstruction.reconstruct_reference(tensor, seed) for name, tensor in coded.items()} | plain
    return smask.encode(state, Recipe(seed, coded, **recipe))


def small_halves() -> CodedTensor:
    """Weights that become subnormal, infinite or a signed zero in F16."""
    mask = torch.full((4,), 255, dtype=torch.uint8)
    return CodedTensor((4, 8), 1, (mask,), torch.tensor([2.0**-30, 2.0**-20, 1.0, 2.0**17]), dtype=torch.float16)


def single(mask: list[int], shape: tuple[int, ...], scale: list[float], **fields: Any) -> CodedTensor:
    return CodedTensor(
        shape, fields.pop("stream", 0), (torch.from_numpy(packed(np.array(mask))),), torch.tensor(scale), **fields
    )


def example() -> bytes:
    """The worked example of the specification."""
    arch = {"input": [2], "layers": [{"op": "linear", "inputs": 2, "outputs": 2, "bias": False}]}
    return model_file({"0.weight": single([1, 0, 0, 1], (2, 2), [0.5])}, {}, seed=7, arch=arch)


def accepted() -> dict[str, bytes]:
    random = torch.Generator().manual_seed(5)
    net = named_nets.architecture("mlp:12-40-30-5", mean=[0.5], std=[0.25])
    shapes = {"1.weight": (40, 12), "3.weight": (30, 40), "5.weight": (5, 30)}
    masked = {
        name: single((torch.rand(shape, generator=random) < density).tolist(), shape, torch.rand(shape[0], generator=random).bfloat16().tolist(), stream=stream)
        for stream, ((name, shape), density) in enumerate(zip(shapes.items(), (0.05, 0.2, 0.5), strict=True))
    }  # fmt: skip
    biases = {
        f"{name[0]}.bias": torch.randn(shape[0], generator=random).bfloat16().float() for name, shape in shapes.items()
    }
    in_order = [f"{layer}.{part}" for layer in (1, 3, 5) for part in ("weight", "bias")]
    state = {
        name: reconstruction.reconstruct_reference(masked[name], 3) if name in masked else biases[name]
        for name in in_order
    }
    planes_of = dict(enumerate(coded_cases()))
    same_seed = {f"t{index}": coded for index, (_, coded) in planes_of.items()}
    plain = {
        "counter": torch.tensor(70_000), "flags": torch.tensor([True, False, True]), "empty": torch.zeros(0, 3),
        "half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float16), "single": torch.tensor([0.1, float("nan")]),
        "double": torch.tensor([0.1, 2.0**-1070], dtype=torch.float64), "nan": torch.tensor([0.5, float("nan")]), "bytes": torch.arange(5, dtype=torch.uint8),
        "small": torch.tensor([-3], dtype=torch.int8), "wide": torch.tensor([-(2**40)]), "exact": torch.tensor([0.25, 3.0], dtype=torch.float64),
    }  # fmt: skip
    return {
        "example": example(),
        "mlp": smask.encode(state, Recipe(3, masked, net, {"task": "vector"})),
        "planes": model_file(same_seed, {}, seed=11),
        "plain": smask.encode(plain, Recipe(0, {})),
        "empty": smask.encode({}, Recipe(0, {})),
        "wide-but-empty": smask.encode(
            {"é ü": torch.tensor([1.0]), "none": torch.zeros(0, dtype=torch.float64)},
            Recipe(0, {}, meta={'\x1f\x7f"\\/\n': "𝄞"}),
        ),
        "numbers": smask.encode(
            {},
            Recipe(
                0,
                {},
                {
                    "layers": [
                        {
                            "op": "normalize",
                            "mean": [0.1307, -0.0, 1e-05, 9.5e-06, 1e15, 1e16, 1.5e300, 5e-324],
                            "std": [1.0, 0.5, 7.0, 123456.789, 1e-4, 2.5e-7, 1e22, 0.1],
                        }
                    ]
                },
            ),
        ),
        "halves": model_file({"w": small_halves()}, {}, seed=2),
        "extension": rewritten(example(), lambda fields: fields.update(later={"must_understand": False, "x": 1})),
    }


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object], **keep: bytes) -> bytes:
    """A file with a changed manifest, sums recomputed."""
    opened = manifest.open_file(data, limits=smask.Limits())
    fields = json.loads(container.unpack(data, limits=smask.Limits()).manifest_text)
    change(fields)
    return container.pack(keep.get("text") or manifest.canonical(fields), [bytes(blob) for blob in opened.blobs])


def set_record(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest_fields: manifest_fields["tensors"][0].update(fields)


def rejected() -> dict[str, tuple[bytes, str, str | None]]:
    """name: (file, error, clause or None where the error has no clause)."""
    good = example()
    text = container.unpack(good, limits=smask.Limits()).manifest_text
    n_manifest = int.from_bytes(good[7:11], "little")
    flipped = bytearray(good)
    flipped[11 + n_manifest] ^= 1
    arch = lambda *layers: lambda fields: fields.update(arch={"layers": list(layers)})  # noqa: E731
    deep: Any = []
    for _ in range(9):
        deep = [{"op": "stack", "layers": deep}]
    changed: dict[str, tuple[Callable[[dict[str, Any]], object], str, str | None]] = {
        "wrong-type": (set_record(planes="1"), "FormatError", "M-03"),
        "planes-zero": (set_record(planes=0), "FormatError", "M-03"),
        "negative-size": (set_record(shape=[2, -2]), "FormatError", "M-03"),
        "bad-digest": (lambda fields: fields.update(digest="xyz"), "FormatError", "M-03"),
        "default-spelled-out": (set_record(base="signed"), "FormatError", "M-04"),
        "name-twice": (lambda fields: fields["tensors"].append(fields["tensors"][0]), "FormatError", "M-05"),
        "neither-plain-nor-coded": (lambda fields: fields["tensors"][0].pop("planes"), "FormatError", "M-06"),
        "stored-too-wide": (lambda fields: fields.update(tensors=[{"name": "a", "shape": [1], "dtype": "F16", "stored": "F32"}]), "FormatError", "M-06"),
        "plain-and-coded": (set_record(stored="F32"), "FormatError", "M-07"),
        "no-scale": (lambda fields: fields["tensors"][0].pop("scale"), "FormatError", "M-07"),
        "coded-integers": (set_record(dtype="I32"), "FormatError", "M-07"),
        "coded-scalar": (set_record(shape=[]), "FormatError", "M-07"),
        "no-seed": (lambda fields: fields.pop("seed"), "FormatError", "M-08"),
        "seed-too-large": (lambda fields: fields.update(seed=2**64), "FormatError", "M-08"),
        "blob-missing": (lambda fields: fields["blobs"].pop(), "FormatError", "M-09"),
        "seed-without-coded": (lambda fields: fields.update(tensors=[{"name": "a", "shape": [1], "stored": "F32"}]), "FormatError", "M-08"),
        "parameter-too-wide": (set_record(scale=["tensor", "F64"]), "FormatError", "M-07"),
        "control-character": (set_record(name="a\0b"), "FormatError", "M-03"),
        "c1-control-character": (set_record(name="a\x9bb"), "FormatError", "M-03"),
        "name-ends-in-newline": (set_record(name="a\n"), "FormatError", "M-03"),
        "integer-with-point": (set_record(planes=1.0), "FormatError", "M-03"),
        "field-missing": (lambda fields: fields.pop("digest"), "FormatError", "M-03"),
        "external-with-layers": (lambda fields: fields.update(arch={"kind": "external", "layers": []}), "FormatError", "M-12"),
        "unknown-dtype": (set_record(dtype="F8_E4M3"), "UnsupportedError", None),
        "scales-without-weights": (set_record(shape=[2**40, 0], scale=["channel", "F32"]), "LimitError", None),
        "unknown-field": (lambda fields: fields.update(later=1), "UnsupportedError", None),
        "must-understand": (lambda fields: fields.update(later={"must_understand": True}), "UnsupportedError", None),
        "unknown-record-field": (set_record(later={"must_understand": False}), "UnsupportedError", None),
        "unknown-coding": (lambda fields: fields["blobs"][-1].__setitem__(0, "arithmetic"), "UnsupportedError", None),
        "unknown-base": (set_record(base="file"), "UnsupportedError", None),
        "unknown-axis": (set_record(scale=["group:64", "F32"]), "UnsupportedError", None),
        "unknown-kind": (lambda fields: fields.update(arch={"kind": "registry"}), "UnsupportedError", None),
        "terabytes": (set_record(shape=[10**8, 10**7]), "LimitError", None),
        "beyond-64-bits": (set_record(shape=[2**62, 2**62, 2**62]), "LimitError", None),
        "blob-too-long": (lambda fields: fields["blobs"][-1].__setitem__(1, 2**62), "FormatError", "C-04"),
        "other-shape": (set_record(shape=[3, 4]), "FormatError", "B-02"),
        "import-me": (arch({"op": "os.system"}), "UnsupportedError", None),
        "unknown-argument": (arch({"op": "linear", "inputs": 2, "outputs": 2, "init": "x"}), "FormatError", "A-01"),
        "huge-layer": (arch({"op": "linear", "inputs": 2**31, "outputs": 2}), "FormatError", "A-01"),
        "deep-nesting": (arch(*deep), "FormatError", "A-02"),
        "name-of-method": (arch({"op": "linear", "inputs": 2, "outputs": 2, "bias": False, "name": "forward"}), "FormatError", "A-03"),
        "normalize-by-zero": (arch({"op": "normalize", "mean": [0.0], "std": [0.0]}), "FormatError", "A-04"),
        "groups-that-do-not-divide": (arch({"op": "conv2d", "inputs": 3, "outputs": 4, "kernel": 1, "groups": 2}), "FormatError", "A-05"),
        "other-architecture": (arch({"op": "linear", "inputs": 2, "outputs": 3}), "ArchitectureError", None),
    }  # fmt: skip
    out: dict[str, tuple[bytes, str, str | None]] = {
        "nothing": (b"", "FormatError", "C-01"),
        "other-magic": (b"PK\x03\x04" + good[4:], "FormatError", "C-01"),
        "head-only": (good[:9], "FormatError", "C-02"),
        "manifest-cut": (good[: 11 + n_manifest // 2], "FormatError", "C-03"),
        "truncated": (good[:-1], "FormatError", "C-04"),
        "extended": (good + b"\x00", "FormatError", "C-04"),
        "bit-flipped": (bytes(flipped), "IntegrityError", None),
        "version-2": (good[:6] + b"\x02" + good[7:], "UnsupportedError", None),
        "manifest-bit-flipped": (good[:20] + bytes([good[20] ^ 4]) + good[21:], "FormatError", "Z-01"),
        "not-json": (container.pack(b"{", []), "FormatError", "M-01"),
        "not-an-object": (container.pack(b"[]", []), "FormatError", "M-01"),
        "white-space": (container.pack(text.replace(b":", b": ", 1), []), "FormatError", "M-02"),
        "member-twice": (container.pack(b'{"arch":{},"arch":{}}', []), "FormatError", "M-02"),
        "nested-json": (container.pack(b"[" * 100_000, []), "FormatError", "M-01"),
        "nested-object": (container.pack(b'{"a":' * 65 + b"1" + b"}" * 65, []), "FormatError", "M-01"),
        "endless-integer": (container.pack(b'{"a":1' + b"0" * 5000 + b"}", []), "FormatError", "M-01"),
        "number-beyond-binary64": (container.pack(b'{"a":1e400}', []), "FormatError", "M-01"),
        "lone-surrogate": (container.pack(b'{"a":"\\ud800"}', []), "FormatError", "M-01"),
        "long-number": (container.pack(b'{"a":0.10}', []), "FormatError", "M-02"),
        "needless-exponent": (container.pack(b'{"a":1e2}', []), "FormatError", "M-02"),
        "negative-zero": (container.pack(b'{"a":-0}', []), "FormatError", "M-02"),
        "needless-escape": (container.pack(b'{"a":"\\u0061"}', []), "FormatError", "M-02"),
        "nan-widened": (plain_file([0x7FC0], "BF16", "F32"), "FormatError", "F-03"),
        "bool-of-two": (plain_file([2], "BOOL", "BOOL"), "FormatError", "F-04"),
        "scale-infinite": (bad_scale(float("inf")), "FormatError", "R-02"),
        "scale-subnormal": (bad_scale(2.0**-130), "FormatError", "R-02"),
    }
    return out | {name: (rewritten(good, change), error, clause) for name, (change, error, clause) in changed.items()}


def bad_scale(value: float) -> bytes:
    """The example with another scale, which no writer of ours would accept."""
    opened = manifest.open_file(example(), limits=smask.Limits())
    stored = np.array([value], "<f4").view(np.uint8).reshape(1, 4)
    blobs = [plane.packed.tobytes() for plane in floats.byte_planes([stored])] + [bytes(opened.blobs[-1])]
    fields = json.loads(manifest.emit(opened.manifest))
    fields["tensors"][0]["scale"] = ["tensor", "F32"]
    fields["blobs"] = [["raw", len(blob)] for blob in blobs]
    return container.pack(manifest.canonical(fields), blobs)


def plain_file(values: list[int], stored: str, dtype: str) -> bytes:
    """One plain tensor with any stored values."""
    width = N_BYTES_OF_DTYPE[stored]
    raw = np.array([list(value.to_bytes(width, "little")) for value in values], np.uint8)
    blobs = [plane.packed.tobytes() for plane in floats.byte_planes([raw])]
    record = records.Record("t", (len(values),), dtype=dtype, stored=stored)
    described = records.Manifest(
        (record,), tuple(records.Blob("raw", len(blob)) for blob in blobs), "0" * 64, dict(EXTERNAL)
    )
    return container.pack(manifest.emit(described), blobs)


def tensors_of(data: bytes) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": integrity.NAME_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape),
         "sha256": hashlib.sha256(integrity.raw_bytes(tensor).numpy().tobytes()).hexdigest()}
        for name, tensor in smask.decode(data).items()
    ]  # fmt: skip


def all_files() -> dict[str, bytes]:
    """Every file of spec/vectors by relative path."""
    text = {
        "philox.txt": philox_text(),
        **{
            f"{name}.json": json.dumps(vectors, indent=1) + "\n"
            for name, vectors in (
                ("bases", bases_vectors()), ("planes", planes_vectors()), ("bitcoding", bitcoding_vectors()),
                ("floats", floats_vectors()), ("reconstruction", reconstruction_vectors()),
            )
        },
    }  # fmt: skip
    accept, reject = accepted(), rejected()
    text["accept/expected.json"] = (
        json.dumps({name: tensors_of(data) for name, data in accept.items()}, indent=1) + "\n"
    )
    expected = {
        name: {
            "error": error,
            "clause": clause,
            "by": "loader"
            if error == "ArchitectureError" or name in LOADER_ONLY or (clause or "").startswith("A-")
            else "decoder",
        }
        for name, (_, error, clause) in reject.items()
    }
    text["reject/expected.json"] = json.dumps(expected, indent=1) + "\n"
    return (
        {name: content.encode() for name, content in text.items()}
        | {f"accept/{name}.smask": data for name, data in accept.items()}
        | {f"reject/{name}.smask": data for name, (data, _, _) in reject.items()}
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write instead of comparing")
    write = parser.parse_args().write
    files = all_files()
    present = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}
    differing = sorted(
        name for name, data in files.items() if name not in present or (ROOT / name).read_bytes() != data
    )
    differing += sorted(present - set(files))
    if write:
        for name in present - set(files):
            (ROOT / name).unlink()
        for name, data in files.items():
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_bytes(data)
    print(json.dumps({"files": len(files), "written" if write else "differing": differing}, indent=1))
    return 0 if write or not differing else 1


if __name__ == "__main__":
    raise SystemExit(main())
