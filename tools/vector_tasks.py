"""Vectors of files of several tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import smask
from smask.coded import CodedTensor
from smask.recipe import EXTERNAL, Recipe
from smask.reconstruction import reconstruct_reference
from vector_over import base_tensors
from vector_sections import packed

SEED = 17
Change = Callable[[dict[str, Any]], object]


def task_of(number: int) -> bytes:
    """Two planes, a mask that all tasks share, one that is tied, a float of its own; dtypes in the file differ."""
    random = torch.Generator().manual_seed(number)

    def coded(shape: tuple[int, ...], stream: int, n_planes: int, bits: torch.Generator) -> CodedTensor:
        planes = [packed((torch.rand(shape, generator=bits) < 0.3).numpy()) for _ in range(n_planes)]
        scale = torch.rand(shape[0], generator=random)
        scale = scale if number == 1 else scale.bfloat16().float()
        return CodedTensor(shape, stream, tuple(map(torch.from_numpy, planes)), scale)

    shared = torch.from_numpy(packed((torch.rand(30, 40, generator=torch.Generator().manual_seed(9)) < 0.5).numpy()))
    masked = {
        "first": coded((6, 10), 0, 2, random),
        "tied": CodedTensor((30, 40), 1, (shared,), torch.tensor([0.5])),
        "second": coded((5, 7), 2, 1, random),
    }
    state = {name: reconstruct_reference(tensor, SEED) for name, tensor in masked.items()}
    state |= {"again": state["tied"], "bias": torch.randn(6, generator=random).bfloat16().float()}
    state |= {"counter": torch.tensor(1000 * number), "table": torch.arange(2000.0) if number else torch.ones(2000)}
    return smask.encode(state, Recipe(SEED, masked, dict(EXTERNAL), {"author": "vector", "task": f"number {number}"}))


def tasks_file() -> bytes:
    return smask.pack({"a": task_of(0), "b": task_of(1), "ü c": task_of(2)})


def tasks_over_file() -> bytes:
    """Masks of a tensor of the base, and what is kept of it."""
    base = base_tensors()

    def task(seed: int) -> bytes:
        mask = (torch.rand(base["w"].shape, generator=torch.Generator().manual_seed(seed)) < 0.5).numpy()
        w = CodedTensor(
            tuple(base["w"].shape), 0, (torch.from_numpy(packed(np.asarray(mask))),), torch.ones(1), base="file", of="",
            origin=base["w"],
        )  # fmt: skip
        state = {"w": reconstruct_reference(w, 0), "bias": base["bias"] if seed else base["bias"] * 2}
        origins = {"bias": ("", base["bias"])}
        digest = smask.open_base(base).digest
        return smask.encode(state, Recipe(0, {"w": w}, base_digest=digest, origins=origins))

    return smask.pack({"one": task(0), "two": task(1)})


def refused_tasks() -> dict[str, tuple[Change, str, str | None]]:
    """name: (change of the manifest of :func:`tasks_file`, error, clause)."""

    def task(index: int, **fields: Any) -> Change:
        return lambda described: described["tasks"][index].update(fields)

    def record(index: int, **fields: Any) -> Change:
        return lambda described: described["tensors"][index].update(fields)

    def same(fields: dict[str, Any]) -> None:
        """A tensor of the second task that is that of no task."""
        found = [index for index, one in enumerate(fields["tensors"]) if one["name"] == "again"]
        fields["tensors"][found[1]]["same"] = "nothing"

    def swapped(fields: dict[str, Any]) -> None:
        tensors = fields["tensors"]
        tensors[-1], tensors[-2] = tensors[-2], tensors[-1]

    def twice(fields: dict[str, Any]) -> None:
        """Two records of each task under one name."""
        for index in range(len(fields["tensors"])):
            if fields["tensors"][index]["name"] == "counter":
                fields["tensors"][index]["name"] = "bias"

    return {
        "tasks-no-list": (lambda fields: fields.update(tasks={"a": 1}), "FormatError", "M-03"),
        "tasks-none": (lambda fields: fields.update(tasks=[]), "FormatError", "M-04"),
        "tasks-one": (lambda fields: fields.update(tasks=fields["tasks"][:1]), "FormatError", "T-01"),
        "tasks-that-do-not-divide": (lambda fields: fields.update(tasks=fields["tasks"][:2]), "FormatError", "T-01"),
        "task-twice": (task(1, name="a"), "FormatError", "T-01"),
        "task-without-digest": (lambda fields: fields["tasks"][1].pop("digest"), "FormatError", "M-03"),
        "task-with-long-digest": (task(1, digest="0" * 64), "FormatError", "M-03"),
        "task-with-control-character": (task(1, name="a\x1b"), "FormatError", "M-03"),
        "task-with-empty-meta": (task(1, meta={}), "FormatError", "M-04"),
        "task-with-unknown-field": (task(1, later={"must_understand": False}), "UnsupportedError", None),
        "task-of-other-names": (record(-1, name="other"), "FormatError", "T-01"),
        "task-of-another-order": (swapped, "FormatError", "T-01"),
        "task-of-another-shape": (record(-1, shape=[1]), "FormatError", "T-01"),
        "task-of-another-dtype": (record(-1, dtype="F64"), "FormatError", "T-01"),
        "task-with-a-tensor-twice": (twice, "FormatError", "M-05"),
        "task-same-as-nothing": (same, "FormatError", "M-14"),
    }  # fmt: skip
