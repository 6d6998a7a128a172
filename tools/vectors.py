"""Writes the vectors of the specification, or compares them with what this code would write.

    python tools/vectors.py            # exit 1 if a file of spec/vectors differs
    python tools/vectors.py --write    # after a deliberate change of the format, together with spec/smask-1.md

Blobs depend on the zstd release: compare with the versions in constraints.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smask
from smask import (
    architectures,
    container,
    floats,
    integrity,
    manifest,
    named_nets,
    reconstruction,
    records,
)
from smask.coded import CodedTensor
from smask.dtypes import N_BYTES_OF_DTYPE
from smask.recipe import EXTERNAL, Recipe
from vector_over import base_file, over_file, over_unfit, progressive_vectors, refused_over
from vector_sections import (
    bases_vectors,
    bitcoding_vectors,
    coded_cases,
    floats_vectors,
    packed,
    philox_text,
    planes_vectors,
    reconstruction_vectors,
)  # fmt: skip
from vector_values import refused_changes, values_file

# Refused only by who builds the module.
LOADER_ONLY = ("import-me",)
ROOT = Path(__file__).parents[1] / "spec/vectors"


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
        "language": language_file(),
        "values": values_file(),
        "base": base_file(),
        "over": over_file(),
        "extension": rewritten(example(), lambda fields: fields.update(later={"must_understand": False, "x": 1})),
    }


def language_file() -> bytes:
    """A language model of one block, its head tied to the embedding: each matrix one plane, norms as they begin."""
    random = torch.Generator().manual_seed(8)
    arch = named_nets.architecture("gpt:1x8x2x4-tied", n_classes=5)
    state = architectures.build(arch).state_dict()
    masked = {
        name: single((torch.rand(tensor.shape, generator=random) < 0.4).tolist(), tuple(tensor.shape), [0.25] * len(tensor), stream=stream)
        for stream, (name, tensor) in enumerate(state.items()) if tensor.dim() == 2 and name != "5.weight"
    }  # fmt: skip
    state |= {name: reconstruction.reconstruct_reference(coded, 4) for name, coded in masked.items()}
    return smask.encode(state | {"5.weight": state["0.weight"]}, Recipe(4, masked, arch))


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file with a changed manifest, sums recomputed."""
    opened = manifest.open_file(data, limits=smask.Limits())
    fields = json.loads(container.unpack(data, limits=smask.Limits()).manifest_text)
    change(fields)
    return container.pack(manifest.canonical(fields), [bytes(blob) for blob in opened.blobs])


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
        "coded-scalar-by-channel": (set_record(shape=[], scale=["channel", "F32"]), "FormatError", "M-07"),
        "null": (set_record(offset=None), "FormatError", "M-03"),
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
        "unknown-base": (set_record(base="stored"), "UnsupportedError", None),
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
        "heads-that-do-not-divide": (arch({"op": "attention", "features": 3, "heads": 2}), "FormatError", "A-05"),
        "tied-to-nothing": (arch({"op": "linear", "inputs": 2, "outputs": 2, "bias": False, "tied": "0.weight"}), "FormatError", "A-07"),
        "tied-to-another-shape": (arch({"op": "embedding", "entries": 3, "features": 2}, {"op": "linear", "inputs": 2, "outputs": 2, "bias": False, "tied": "0.weight"}), "FormatError", "A-07"),
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
        "mask-of-nan": (over_unfit("nan"), "FormatError", "S-06"),
        "mask-beyond-binary32": (over_unfit("huge"), "FormatError", "S-06"),
        "scale-subnormal": (bad_scale(2.0**-130), "FormatError", "R-02"),
    }
    for file, changes in ((good, changed), (values_file(), refused_changes()), (over_file(), refused_over())):
        out |= {name: (rewritten(file, change), error, clause) for name, (change, error, clause) in changes.items()}
    return out


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
        for name, tensor in smask.decode(data, base=base_file()).items()
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
    text["progressive.json"] = json.dumps(progressive_vectors(accept), indent=1) + "\n"
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
