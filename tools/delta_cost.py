"""Bytes of a fine-tuned checkpoint stored over its base, beside those stored alone and beside what zstd makes of both.

    python tools/delta_cost.py                                       # a perceptron on the bundled digits
    python tools/delta_cost.py ../shared/data/checkpoints/resnet20-12fca82f.th --arch resnet20 --data cifar10.npz \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --images 5000 --lr 0.001
    python tools/delta_cost.py ... --only linear                     # the output layer alone is tuned
    python tools/delta_cost.py ... --upside-down --images 24000 --lr 0.02 --sizes 20kB,40kB -o docs/delta.json

The base is tuned for one pass over images, flipped as a new user's would be, or with --upside-down for images that all
are so. With --sizes files of these are made over the base and alone, without inputs, with some (--calibrate) and with
training on them (--refine). Rivals of a lossless delta: zstd with the
base as its dictionary (``zstd --patch-from``), zstd over the exclusive or of both, and that byte plane by byte plane.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import zstandard
from torch import nn

import smask
from smask import architectures, named_nets
from smask.conversion.converter import convert_checkpoint
from smask.conversion.networks import model_of
from smask.integrity import raw_bytes
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset, load_dataset

ERRORS = (0.001, 0.003, 0.01, 0.03)
N_BATCH = 128
N_SAMPLES = 2000


def train(model: nn.Module, data: Dataset, *, n_images: int, lr: float, only: str, flip: bool) -> None:
    model.train()
    tuned = [parameter for name, parameter in model.named_parameters() if only in name]
    optimizer = torch.optim.SGD(tuned, lr=lr, momentum=0.9)
    batches = Batches(data, batch_size=N_BATCH, seed=1)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    for x, y in itertools.islice(endless, -(-n_images // N_BATCH)):
        optimizer.zero_grad()
        F.cross_entropy(model(x.flip(-1) if flip else x), y).backward()
        optimizer.step()


def zstd(data: bytes, base: bytes | None = None) -> int:
    """Bytes at level 19, with the base as ``--patch-from`` takes it."""
    window = max(10, (len(data) + len(base or b"")).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=min(window, 27), enable_ldm=True)
    dictionary = base and zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary or None)
    return len(compressor.compress(data))


def flat(state: dict[str, torch.Tensor]) -> bytes:
    return b"".join(raw_bytes(tensor).numpy().tobytes() for tensor in state.values())


def planewise(state: dict[str, torch.Tensor], data: np.ndarray) -> bytes:
    """The bytes of each tensor one plane after the other."""
    parts, start = [], 0
    for tensor in state.values():
        parts.append(data[start : start + tensor.nbytes].reshape(-1, tensor.element_size()).T.tobytes())
        start += tensor.nbytes
    return b"".join(parts)


def lossless(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], path: Path) -> dict[str, int]:
    old, new = flat(base), flat(tuned)
    exclusive = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
    over = convert_checkpoint(tuned, path, base=base, overwrite=True)
    decoded = smask.decode(path, base=base)
    assert flat(decoded) == new, "not the same bits"
    return {
        "raw": len(new),
        "over_base": over.n_bytes,
        "alone": convert_checkpoint(tuned, path, overwrite=True).n_bytes,
        "zstd_19": zstd(new),
        "zstd_19_patch_from_base": zstd(new, old),
        "zstd_19_of_xor": zstd(exclusive.tobytes()),
        "zstd_19_of_xor_planewise": zstd(planewise(tuned, exclusive)),
    }


def with_inputs(
    tuned: dict[str, torch.Tensor], base: dict[str, torch.Tensor], arch: dict[str, Any], data: Dataset,
    size: str, epochs: int, path: Path,
) -> dict[str, Any]:  # fmt: skip
    """Files of one size, over the base and alone, that looked at inputs and that did not."""
    row: dict[str, Any] = {"target_size": size}
    inputs = data.sample(N_SAMPLES)
    for where, given in (("over_base", base), ("alone", None)):
        for what, more in (
            ("data_free", {}), ("calibrated", {"calibrate": inputs}),
            ("refined", {"calibrate": inputs, "refine": epochs}),
        ):  # fmt: skip
            done = convert_checkpoint(
                tuned, path, base=given, arch=arch, target_size=size, overwrite=True, **more
            )  # fmt: skip
            accuracy = score(smask.load(path, base=given), data).accuracy
            row[f"{where}_{what}"] = {"n_bytes": done.n_bytes, "accuracy": accuracy, "seconds": done.seconds}
            print(f"{size} {where} {what}: {accuracy:.2%} at {done.n_bytes:,} bytes", file=sys.stderr)
    return row


def upside_down(data: Dataset) -> Dataset:
    return replace(data, x_train=data.x_train.flip(-2), x_test=data.x_test.flip(-2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="the base (default: one is trained)")
    parser.add_argument("--arch", default="lenet-300-100")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int, default=5000, help="images of the tuning (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the tuning (default %(default)s)")
    parser.add_argument("--only", default="", help="tune only parameters with this in their names")
    parser.add_argument("--upside-down", action="store_true", help="the images of the new user are all so")
    parser.add_argument("--sizes", default="", metavar="S,S", help="also files of these sizes, with inputs and without")
    parser.add_argument("--refine", type=int, default=10, help="passes over the inputs (default %(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="a file for the report, beside the screen")
    arguments = parser.parse_args()
    data = load_dataset(arguments.data)
    mean, std = (text and [float(part) for part in text.split(",")] for text in (arguments.mean, arguments.std))
    arch = named_nets.architecture(arguments.arch, input_shape=data.input_shape, mean=mean, std=std)
    if arguments.checkpoint:
        model = model_of(arguments.checkpoint, arch)
    else:
        torch.manual_seed(0)
        model = architectures.build(arch)
        train(model, data, n_images=50_000, lr=0.05, only="", flip=False)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = upside_down(data) if arguments.upside_down else data
    base_accuracy = score(model, data).accuracy
    own = {"n_images": arguments.images, "lr": arguments.lr, "only": arguments.only}
    train(model, data, **own, flip=not arguments.upside_down)
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report: dict[str, Any] = {"accuracy_base": base_accuracy, "accuracy_tuned": score(model, data).accuracy}
    weights = [name for name, tensor in tuned.items() if tensor.dim() > 1]
    distance = sum(float((tuned[name].double() - base[name].double()).square().sum()) for name in weights)
    report["distance"] = (distance / sum(float(tuned[name].double().square().sum()) for name in weights)) ** 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.smask"
        report["lossless"] = lossless(base, tuned, path)
        report["lossy"] = []
        for error in ERRORS:
            row: dict[str, Any] = {"max_error": error}
            for what, given in (("over_base", base), ("alone", None)):
                done = convert_checkpoint(tuned, path, base=given, arch=arch, max_error=error, overwrite=True)
                accuracy = score(smask.load(path, base=given), data).accuracy
                row[what] = {"n_bytes": done.n_bytes, "error": done.error, "accuracy": accuracy}
            report["lossy"].append(row)
        sizes = [size for size in arguments.sizes.split(",") if size]
        report["sized"] = [with_inputs(tuned, base, arch, data, size, arguments.refine, path) for size in sizes]
    made = {name: getattr(arguments, name) for name in ("arch", "images", "lr", "only", "upside_down", "refine")}
    source = arguments.checkpoint.name if arguments.checkpoint else "trained here"
    text = json.dumps(
        {"machine": facts(), "base": source, "data": Path(arguments.data).name, **made, **report}, indent=1
    )
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
