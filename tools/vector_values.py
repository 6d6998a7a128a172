"""Vectors of stored values: tensors over the base `values` and tensors that are the same as another."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from smask import planes
from smask.draft import Draft
from smask.recipe import EXTERNAL
from smask.reconstruction import reconstruct_reference
from smask.records import Record
from smask.stored_tensors import coded_record, plain_record, values_record
from vector_sections import coded_cases

SEED = 11


def values_file() -> bytes:
    """Each form a value can have, with a plain tensor and one of several planes between them."""
    sparse = torch.zeros(3, 5)
    sparse[0, 1], sparse[1, 2], sparse[1, 4], sparse[2, 0], sparse[2, 4] = 0.1, -0.0, float("inf"), 2.0**-140, -3.25
    sparse[2, 2] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)  # a NaN with a payload
    draft = Draft(io.BytesIO(), n_weights=0)

    def values(name: str, tensor: torch.Tensor) -> None:
        record, sections = values_record(name, tensor)
        draft.append(tensor, record, sections=[(0, kind, bits) for kind, bits in sections])

    values("bytes", torch.tensor([0, 1, 2, 0, 7], dtype=torch.uint8))
    values("nan", torch.tensor([float("nan"), 0.0, -0.0, 1.0], dtype=torch.bfloat16))
    values("sparse", sparse)
    coded = next(coded for _, coded in coded_cases() if len(coded.planes) == 3)
    record, parameters = coded_record("planes", coded)
    flip = None if coded.flip is None else coded.flip.numpy()
    sections = planes.sections([plane.numpy() for plane in coded.planes], flip, coded.n_weights)
    draft.append(reconstruct_reference(coded, SEED), record, parameters=parameters, sections=sections)
    values("widened", torch.tensor([0.5, 0.0, -7.0], dtype=torch.float64))
    bias, stored = plain_record("plain", torch.tensor([0.1, -2.0]))
    draft.append(torch.tensor([0.1, -2.0]), bias, parameters=[stored])
    draft.append(sparse, Record("tied", (3, 5), same="sparse"))
    values("none", torch.zeros(2, 3))
    values("all", torch.tensor([[1.5, 0.1], [-2.0, 65504.0]], dtype=torch.float16))
    values("empty", torch.zeros(0, 4, dtype=torch.int64))
    values("scalar", torch.tensor(-70_000))
    values("flags", torch.tensor([True, False, True, True]))
    out = io.BytesIO()
    draft.write(out, arch=EXTERNAL, seed=SEED, meta={})
    return out.getvalue()


Change = Callable[[dict[str, Any]], object]


def refused_changes() -> dict[str, tuple[Change, str, str]]:
    """name: (change of the manifest of :func:`values_file`, error, clause)."""

    def record(name: str, **fields: Any) -> Change:
        def change(manifest: dict[str, Any]) -> None:
            found = next(record for record in manifest["tensors"] if record["name"] == name)
            found.update(fields)
            for field in [field for field, value in found.items() if value is None]:
                del found[field]

        return change

    return {
        "values-of-no-dtype": (record("bytes", stored=None), "FormatError", "M-13"),
        "values-too-wide": (record("bytes", stored="F32"), "FormatError", "M-13"),
        "values-in-two-planes": (record("bytes", planes=2), "FormatError", "M-13"),
        "values-with-scale": (record("bytes", scale=["tensor", "F32"]), "FormatError", "M-13"),
        "values-with-stream": (record("bytes", stream=1), "FormatError", "M-13"),
        "values-section-missing": (record("sparse", stored="BF16"), "FormatError", "M-09"),
        "values-of-other-length": (record("bytes", shape=[9]), "FormatError", "B-02"),
        "values-nan-widened": (record("nan", dtype=None), "FormatError", "F-03"),
        "values-bool-of-two": (record("bytes", dtype="BOOL", stored="BOOL"), "FormatError", "F-04"),
        "same-as-nothing": (record("tied", same="bias"), "FormatError", "M-14"),
        "same-as-itself": (record("tied", same="tied"), "FormatError", "M-14"),
        "same-as-later": (record("bytes", same="nan", stored=None, planes=None, base=None), "FormatError", "M-14"),
        "same-in-other-shape": (record("tied", shape=[5, 3]), "FormatError", "M-14"),
        "same-in-other-dtype": (record("tied", dtype="I32"), "FormatError", "M-14"),
        "same-and-stored": (record("tied", stored="F32"), "FormatError", "M-14"),
        "same-as-the-same": (
            lambda manifest: manifest["tensors"].append({"name": "again", "shape": [3, 5], "same": "tied"}),
            "FormatError",
            "M-14",
        ),
    }
