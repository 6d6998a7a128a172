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


def tasks_apart_file() -> bytes:
    """Heads of other sizes on one body, a task of more tensors, one whose architecture alone is another."""

    def net(n_classes: int, number: int, *more: str) -> bytes:
        """A body that all share, with a head of its own: a mask and biases."""
        random = torch.Generator().manual_seed(number)
        body = packed((torch.rand(40, 32, generator=torch.Generator().manual_seed(8)) < 0.3).numpy())
        head = packed((torch.rand(n_classes, 40, generator=random) < 0.5).numpy())
        masked = {
            "0.weight": CodedTensor((40, 32), 0, (torch.from_numpy(body),), torch.ones(1)),
            "2.weight": CodedTensor((n_classes, 40), 1, (torch.from_numpy(head),), torch.tensor([0.5])),
        }
        state = {name: reconstruct_reference(tensor, SEED) for name, tensor in masked.items()}
        state["2.bias"] = torch.randn(n_classes, generator=random).bfloat16().float()
        layers: list[object] = [
            {"op": "linear", "inputs": 32, "outputs": 40, "bias": False}, "relu",
            {"op": "linear", "inputs": 40, "outputs": n_classes}, *more,
        ]  # fmt: skip
        return smask.encode(state, Recipe(SEED, masked, {"input": [32], "layers": layers}))

    other = {"0.weight": torch.ones(3, 32), "2.bias": torch.tensor([1.5])}
    files = {"three": net(3, 1), "five": net(5, 2), "like three": net(3, 3), "bent": net(3, 4, "sigmoid")}
    return smask.pack(files | {"alone": smask.encode(other, Recipe(0, {}, dict(EXTERNAL)))})


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


def task(index: int, **fields: Any) -> Change:
    """Fields of a task set."""
    return lambda described: described["tasks"][index].update(fields)


def refused_apart() -> dict[str, tuple[Change, str, str | None]]:
    """The same of :func:`tasks_apart_file`."""

    def without(index: int, field: str) -> Change:
        return lambda described: described["tasks"][index].pop(field)

    def alike(fields: dict[str, Any]) -> None:
        """The shapes of the first task in another that says how many records it has."""
        for one in fields["tensors"][3:6]:
            one["shape"] = [3 if size == 5 else size for size in one["shape"]]

    def empty_first(fields: dict[str, Any]) -> None:
        """A task that names a record of the second, since the first has none."""
        fields["tasks"] = fields["tasks"][:1] + [task | {"records": 1} for task in fields["tasks"][1:3]]
        shape = {"name": "x", "shape": [1]}
        fields["tensors"] = [shape | {"stored": "F32"}, shape | {"same": "x"}]
        del fields["seed"]

    def architectures_of(fields: dict[str, Any]) -> None:
        fields["tasks"][1]["arch"] = fields["arch"]

    return {
        "apart-without-records": (without(1, "records"), "FormatError", "T-01"),
        "apart-with-fewer-records": (task(1, records=2), "FormatError", "T-01"),
        "apart-with-all-records": (task(1, records=13), "FormatError", "T-01"),
        "apart-with-more-records": (task(1, records=2**62), "FormatError", "T-01"),
        "apart-with-records-below-zero": (task(1, records=-1), "FormatError", "M-03"),
        "apart-with-records-of-half": (task(1, records=3.5), "FormatError", "M-03"),
        "apart-with-null-records": (task(1, records=None), "FormatError", "M-03"),
        "apart-in-the-first-task": (task(0, records=3), "FormatError", "T-01"),
        "apart-by-layers-in-the-first-task": (task(0, arch={}), "FormatError", "T-01"),
        "apart-and-alike": (alike, "FormatError", "T-01"),
        "apart-from-an-empty-first-task": (empty_first, "FormatError", "M-14"),
        "apart-with-records-like-the-first": (task(2, records=3), "FormatError", "T-01"),
        "apart-with-layers-like-the-first": (architectures_of, "FormatError", "T-01"),
        "apart-with-layers-that-are-no-object": (task(1, arch=[]), "FormatError", "M-03"),
        "apart-of-an-unknown-kind": (task(1, arch={"kind": "later"}), "UnsupportedError", None),
        "apart-external-with-layers": (task(1, arch={"kind": "external", "layers": []}), "FormatError", "M-12"),
    }  # fmt: skip


def refused_tasks() -> dict[str, tuple[Change, str, str | None]]:
    """name: (change of the manifest of :func:`tasks_file`, error, clause)."""

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
