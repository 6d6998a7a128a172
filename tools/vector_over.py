"""Vectors of files over another checkpoint, and of prefixes of files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from msgspec.structs import replace

import smask
from smask import integrity, manifest, prefixes
from smask.bitcoding import Bits
from smask.coded import CodedTensor
from smask.draft import Draft
from smask.recipe import EXTERNAL, Recipe
from smask.reconstruction import reconstruct_reference
from smask.records import Record
from smask.stored_tensors import coded_record, difference_record, difference_sections
from vector_sections import packed

SEED = 13
NAMES = ("base", "over")  # file, and the one over it


def base_tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(6)
    return {
        "w": torch.randn(4, 9, generator=random) * torch.tensor([2.0**-127, 1.0, 2.0**-126, 1.0])[:, None],
        "half": torch.randn(3, 7, generator=random).half(),
        "double": torch.randn(2, 5, generator=random, dtype=torch.float64),
        "brain": torch.randn(5, 3, generator=random).bfloat16(),
        "bias": torch.tensor([0.5, -1.0, 0.0, 2.0**-140]),
        "counter": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.tensor([0, 255, 7], dtype=torch.uint8),
        "nan": torch.tensor([[1.0, float("nan")]]),
        "huge": torch.tensor([[1e300, 1.0]], dtype=torch.float64),
    }  # fmt: skip


def base_file() -> bytes:
    return smask.encode(base_tensors(), Recipe(0, {}))


def over_file() -> bytes:
    """Each form that a tensor over the base can have, and one that is over nothing."""
    base, random = base_tensors(), torch.Generator().manual_seed(7)
    draft = Draft(io.BytesIO(), n_weights=0)

    def coded(name: str, of: str, n_planes: int, **fields: Any) -> None:
        origin = base[of or name]
        magnitudes = (torch.rand(origin.shape, generator=random) ** 3 * 2**n_planes).long().numpy()
        planes = tuple(torch.from_numpy(packed(magnitudes >> p & 1)) for p in reversed(range(n_planes)))
        flip = torch.from_numpy(packed((torch.rand(origin.shape, generator=random) < 0.5).numpy() & (magnitudes > 0)))
        tensor = CodedTensor(
            tuple(origin.shape), fields.pop("stream", 0), planes, fields.pop("scale", torch.ones(1)), dtype=fields.pop("dtype", origin.dtype),
            flip=flip if fields.pop("flip", False) else None, of=of, origin=origin, **fields,
        )  # fmt: skip
        draft.add_coded(name, reconstruct_reference(tensor, SEED), tensor)

    def difference(name: str, tensor: torch.Tensor, of: str, *, own: bool) -> None:
        record, folded = difference_record(name, tensor, base[of or name], of)
        if own:
            record = replace(record, planes=1, base="values")
            draft.append(tensor, record, sections=[(0, kind, bits) for kind, bits in difference_sections(folded)])
        else:
            draft.append(tensor, record, parameters=[folded])

    coded("w", "", 1, base="file")
    coded("flipped", "w", 1, base="file", flip=True, scale=torch.tensor([1.0, -0.5, 3.0, 0.0]))
    coded("several", "half", 3, base="file", offset=torch.tensor([0.25]), dtype=torch.float32)
    coded("tuned", "w", 4, stream=5, flip=True, scale=torch.tensor([2.0**-9]), offset=torch.tensor([0.125]))
    coded("half", "", 2, stream=6, base="uniform", scale=torch.tensor([0.01, 0.02, 0.5]))
    coded("double", "", 3, stream=7, flip=True, scale=torch.tensor([0.001]))
    coded("brain", "", 1, stream=8, base="normal", scale=torch.tensor([0.25]))
    near = base["bias"] * 1.001
    difference("bias", near, "", own=False)
    difference("counter", torch.tensor(-3), "", own=False)
    difference("bytes", torch.tensor([255, 0, 9], dtype=torch.uint8), "", own=True)
    difference("flags", torch.tensor([False, False, True]), "", own=True)
    difference(
        "bits", base["w"].nextafter(torch.tensor(9.0)) * torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None], "w", own=True
    )
    draft.append(base["nan"], Record("nan", (1, 2), of=""))
    draft.append(base["nan"], Record("copy", (1, 2), of="nan"))
    draft.append(base["nan"], Record("again", (1, 2), same="copy"))
    alone = CodedTensor((2, 8), 9, (torch.tensor([0x5A, 0xC3], dtype=torch.uint8),), torch.tensor([0.5]))
    record, parameters = coded_record("alone", alone)
    bits = [(0, "significance", plane_bits(alone))]
    draft.append(reconstruct_reference(alone, SEED), record, parameters=parameters, sections=bits)
    out = io.BytesIO()
    draft.write(out, arch=EXTERNAL, seed=SEED, meta={"base": "vectors"}, base_digest=smask.open_base(base).digest)
    return out.getvalue()


def plane_bits(coded: CodedTensor) -> Bits:
    return Bits(coded.planes[0].numpy(), coded.n_weights)


Change = Callable[[dict[str, Any]], object]


def refused_over() -> dict[str, tuple[Change, str, str | None]]:
    """name: (change of the manifest of :func:`over_file`, error, clause)."""

    def record(name: str, **fields: Any) -> Change:
        def change(described: dict[str, Any]) -> None:
            found = next(record for record in described["tensors"] if record["name"] == name)
            found.update(fields)
            for field in [field for field, value in found.items() if value is None]:
                del found[field]

        return change

    return {
        "over-another-base": (lambda described: described.update(base_digest="0" * 64), "BaseError", "I-03"),
        "over-no-base": (lambda described: described.pop("base_digest"), "FormatError", "M-15"),
        "over-bad-digest": (lambda described: described.update(base_digest="x"), "FormatError", "M-03"),
        "of-its-own-name": (record("w", of="w"), "FormatError", "M-16"),
        "of-no-string": (record("w", of=True), "FormatError", "M-03"),
        "file-with-stream": (record("w", stream=1), "FormatError", "M-16"),
        "file-of-nothing": (record("w", of=None), "FormatError", "M-16"),
        "copy-with-flip": (record("copy", flip=True), "FormatError", "M-16"),
        "difference-widened": (record("counter", stored="I32"), "FormatError", "M-16"),
        "same-and-of": (record("again", of=""), "FormatError", "M-14"),
        "of-unknown-tensor": (record("copy", of="elsewhere"), "FormatError", "I-04"),
        "of-other-shape": (record("copy", of="bias"), "FormatError", "I-04"),
        "of-other-dtype": (record("copy", of="huge"), "FormatError", "I-04"),
        "bool-of-difference": (record("bytes", of="flags", dtype="BOOL", stored="BOOL"), "FormatError", "F-04"),
    }


def over_unfit(base: str) -> bytes:
    """A mask of a tensor, over which none may be."""
    origin = base_tensors()[base]
    coded = CodedTensor(
        (1, 2), 0, (torch.tensor([1], dtype=torch.uint8),), torch.ones(1), base="file", dtype=origin.dtype, of=base
    )
    record, parameters = coded_record("t", coded)
    draft = Draft(io.BytesIO(), n_weights=0)
    draft.append(origin, record, parameters=parameters, sections=[(0, "significance", plane_bits(coded))])
    out = io.BytesIO()
    draft.write(out, arch=EXTERNAL, seed=SEED, meta={}, base_digest=smask.open_base(base_tensors()).digest)
    return out.getvalue()


def progressive_vectors(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Prefixes that end with each blob, and a byte before: sha256 over the coarser tensors, and what is there of each."""
    out = []
    tasked = [("tasks", task.name) for task in manifest.open_file(files["tasks"], limits=smask.Limits()).manifest.tasks]
    whole = [(name, None) for name in ("planes", "values", "over", "mlp", "trained")]
    for name, task in [*whole, *tasked]:
        data = files[name]
        opened = manifest.open_file(data, limits=smask.Limits())
        place, ends = opened.n_head_bytes, []
        for blob in opened.manifest.blobs:
            place += blob.n_bytes
            ends.append(place)
        least = ends[prefixes.n_byte_planes(opened.manifest.tensors) - 1]
        lengths = sorted({length for end in ends for length in (end - 1, end) if length >= least})
        base = base_tensors() if name == "over" else None
        digests: dict[str, int] = {}
        for length in lengths:
            tensors = smask.decode(data, max_bytes=length, base=base, task=task)
            digest = integrity.digest(tensors)
            if digest in digests and length not in ends:
                continue
            digests[digest] = length
            there = {
                part.name: [part.n_present, part.unit]
                for part in tensors.coverage.tensors
                if part.n_present < part.n_total
            }
            out.append(
                {
                    "file": name,
                    **({"task": task} if task else {}),
                    "n_bytes": length,
                    "n_used": tensors.coverage.n_bytes,
                    "digest": digest,
                    "missing": there,
                }
            )
    return out
