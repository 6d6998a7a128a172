"""Writes the vectors of the specification, or compares them with what this code would write.

    python tools/vectors.py            # exit 1 if a file of spec/vectors differs
    python tools/vectors.py --write    # after a deliberate change of the format, together with spec/smask-1.md

Blobs depend on the zstd release: compare with the versions in constraints.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smask
from smask import architectures, integrity, named_nets, reconstruction
from smask.coded import CodedTensor
from smask.recipe import Recipe
from vector_contexts import contexts_vectors, rangecoding_vectors, silent_tensors, trained_tensors, trellis_vectors
from vector_faults import LOADER_ONLY, by_range, rejected, rewritten
from vector_over import base_file, over_file, progressive_vectors
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
from vector_tasks import tasks_apart_file, tasks_file, tasks_over_file
from vector_values import values_file

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
        "ranged-but-empty": by_range(
            model_file({"w": single([], (7, 0), [1.0], base="one")}, {}, seed=0), (7, 0), b"\x00"
        ),
        "trained": model_file(trained_tensors(), {}, seed=0),
        "silent": model_file(silent_tensors(), {}, seed=6),
        "values": values_file(),
        "base": base_file(),
        "over": over_file(),
        "tasks": tasks_file(),
        "tasks-apart": tasks_apart_file(),
        "tasks-over": tasks_over_file(),
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


def tensors_of(data: bytes) -> list[dict[str, Any]]:
    tasks = [task["name"] for task in smask.inspect(data).as_dict()["tasks"]]
    return [
        ({"task": task} if task else {}) |
        {"name": name, "dtype": integrity.NAME_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape),
         "sha256": hashlib.sha256(integrity.raw_bytes(tensor).numpy().tobytes()).hexdigest()}
        for task in tasks or [None] for name, tensor in smask.decode(data, base=base_file(), task=task).items()
    ]  # fmt: skip


def all_files() -> dict[str, bytes]:
    """Every file of spec/vectors by relative path."""
    text = {
        "philox.txt": philox_text(),
        **{
            f"{name}.json": json.dumps(vectors, indent=1) + "\n"
            for name, vectors in (
                ("bases", bases_vectors()), ("planes", planes_vectors()), ("trellis", trellis_vectors()),
                ("bitcoding", bitcoding_vectors()), ("rangecoding", rangecoding_vectors()), ("contexts", contexts_vectors()),
                ("floats", floats_vectors()), ("reconstruction", reconstruction_vectors()),
            )
        },
    }  # fmt: skip
    accept, reject = accepted(), rejected(example())
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
