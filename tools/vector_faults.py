"""Files that every reader refuses: broken at a place of the container, the manifest or the stored values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import smask
from smask import container, floats, manifest, records
from smask.dtypes import N_BYTES_OF_DTYPE
from smask.recipe import EXTERNAL, Recipe
from vector_over import over_file, over_unfit, refused_over
from vector_tasks import refused_apart, refused_tasks, tasks_apart_file, tasks_file
from vector_values import refused_changes, values_file

# Refused only by who builds the module.
LOADER_ONLY = ("import-me",)


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file with a changed manifest, sums recomputed."""
    opened = manifest.open_file(data, limits=smask.Limits())
    fields = json.loads(container.unpack(data, limits=smask.Limits()).manifest_text)
    change(fields)
    return container.pack(manifest.canonical(fields), [bytes(blob) for blob in opened.blobs])


def set_record(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest_fields: manifest_fields["tensors"][0].update(fields)


def rejected(good: bytes) -> dict[str, tuple[bytes, str, str | None]]:
    """The refused files.

    Args:
        good: The worked example of the specification, which most of them are changes of.

    Returns:
        name: (file, error, clause or None where the error has no clause).
    """
    text = container.unpack(good, limits=smask.Limits()).manifest_text
    n_manifest = int.from_bytes(good[7:11], "little")
    flipped = bytearray(good)
    flipped[11 + n_manifest] ^= 1
    arch = lambda *layers: lambda fields: fields.update(arch={"layers": list(layers)})  # noqa: E731
    named = lambda name: {"op": "linear", "inputs": 2, "outputs": 2, "bias": False, "name": name}  # noqa: E731
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
        "one-with-stream": (set_record(base="one", stream=3), "FormatError", "M-17"),
        "trellis-of-sixteen": (set_record(trellis=True, planes=16), "FormatError", "M-18"),
        "bytes-by-range": (lambda fields: fields["blobs"][0].__setitem__(0, "range"), "FormatError", "E-01"),
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
        "integer-beyond-binary64": (lambda fields: fields.update(later={"must_understand": False, "x": 10**400}), "FormatError", "M-01"),
        "must-understand": (lambda fields: fields.update(later={"must_understand": True}), "UnsupportedError", None),
        "unknown-record-field": (set_record(later={"must_understand": False}), "UnsupportedError", None),
        "unknown-coding": (lambda fields: fields["blobs"][-1].__setitem__(0, "arithmetic"), "UnsupportedError", None),
        "unknown-base": (set_record(base="stored"), "UnsupportedError", None),
        "unknown-axis": (set_record(scale=["group:64", "F32"]), "UnsupportedError", None),
        "unknown-kind": (lambda fields: fields.update(arch={"kind": "registry"}), "UnsupportedError", None),
        "terabytes": (set_record(shape=[10**8, 10**7]), "LimitError", None),
        "beyond-64-bits": (set_record(shape=[2**62, 2**62, 2**62]), "LimitError", None),
        "nothing-of-terabytes": (set_record(shape=[0, 2**40]), "LimitError", None),
        "nothing-beyond-64-bits": (set_record(shape=[2**62, 2**62, 0]), "LimitError", None),
        "blob-too-long": (lambda fields: fields["blobs"][-1].__setitem__(1, 2**62), "FormatError", "C-04"),
        "other-shape": (set_record(shape=[3, 4]), "FormatError", "B-02"),
        "import-me": (arch({"op": "os.system"}), "UnsupportedError", None),
        "unknown-argument": (arch({"op": "linear", "inputs": 2, "outputs": 2, "init": "x"}), "FormatError", "A-01"),
        "huge-layer": (arch({"op": "linear", "inputs": 2**31, "outputs": 2}), "FormatError", "A-01"),
        "deep-nesting": (arch(*deep), "FormatError", "A-02"),
        "name-of-method": (arch(named("forward")), "FormatError", "A-03"),
        "name-of-sequential": (arch(named("append")), "FormatError", "A-03"),
        "name-of-ours": (arch(named("smask_arch")), "FormatError", "A-03"),
        "name-with-underscore": (arch(named("_a")), "FormatError", "A-03"),
        "name-of-shortcut": (arch({"op": "residual", "body": [named("shortcut")]}), "FormatError", "A-03"),
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
        "scale-infinite": (bad_scale(good, float("inf")), "FormatError", "R-02"),
        "mask-of-nan": (over_unfit("nan"), "FormatError", "S-06"),
        "mask-beyond-binary32": (over_unfit("huge"), "FormatError", "S-06"),
        "range-beyond-its-bytes": (by_range(good, (64, 64), b"\x00"), "FormatError", "E-06"),
        "too-many-bytes-by-range": (
            rewritten(plain_file([0] * 4097, "U8", "U8"), lambda fields: fields["blobs"][0].__setitem__(0, "range")),
            "FormatError",
            "E-05",
        ),
        "range-without-density": (by_range(good, (2, 0), b""), "FormatError", "E-01"),
        "tied-to-other-bytes": (untied_file(), "FormatError", "A-07"),
        "scale-subnormal": (bad_scale(good, 2.0**-130), "FormatError", "R-02"),
    }
    for file, changes in (
        (good, changed),
        (values_file(), refused_changes()),
        (over_file(), refused_over()),
        (tasks_file(), refused_tasks()),
        (tasks_apart_file(), refused_apart()),
    ):
        out |= {name: (rewritten(file, change), error, clause) for name, (change, error, clause) in changes.items()}
    return out


def by_range(good: bytes, shape: tuple[int, ...], blob: bytes) -> bytes:
    """The worked example with another shape and its plane coded by range."""
    opened = manifest.open_file(good, limits=smask.Limits())
    fields = json.loads(manifest.emit(opened.manifest))
    fields["tensors"][0]["shape"] = list(shape)
    fields["blobs"][-1] = ["range", len(blob)]
    return container.pack(manifest.canonical(fields), [*map(bytes, opened.blobs[:-1]), blob])


def bad_scale(good: bytes, value: float) -> bytes:
    """The worked example with another scale, which no writer of ours would accept."""
    opened = manifest.open_file(good, limits=smask.Limits())
    stored = np.array([value], "<f4").view(np.uint8).reshape(1, 4)
    blobs = [plane.packed.tobytes() for plane in floats.byte_planes([stored])] + [bytes(opened.blobs[-1])]
    fields = json.loads(manifest.emit(opened.manifest))
    fields["tensors"][0]["scale"] = ["tensor", "F32"]
    fields["blobs"] = [["raw", len(blob)] for blob in blobs]
    return container.pack(manifest.canonical(fields), blobs)


def untied_file() -> bytes:
    """Two layers with one parameter by the architecture, and with two by the records."""
    layer = {"op": "linear", "inputs": 2, "outputs": 2, "bias": False}
    state = {"0.weight": torch.ones(2, 2), "1.weight": torch.full((2, 2), 5.0)}
    return smask.encode(state, Recipe(0, {}, {"layers": [layer, layer | {"tied": "0.weight"}]}))


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
