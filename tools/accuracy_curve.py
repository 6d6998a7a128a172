"""Accuracy against bytes of a checkpoint, ours and the rival's, as JSON and as a picture.

    python tools/accuracy_curve.py resnet20.th --arch resnet20 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \\
        --eval cifar10.npz --sizes 40kB,60kB,72kB,95kB,122kB,155kB -o docs/resnet20 --calibrated 30kB@40,60kB@30 \\
        --nncodec .venv-nncodec/bin/python --qps -32,-28,-24,-20,-16

Writes OUT.json after every point and OUT.png at the end; a second run keeps the points that are there, if they are of
the same checkpoint and data, and adds what is missing. Accuracy is that of the file read back, bytes are whole files.

The picture needs matplotlib (`pip install 'smask[pictures]'`); without it only the JSON is written. The rival needs an
environment of its own, since it wants other versions of numpy and torch:

    python -m venv .venv-nncodec && .venv-nncodec/bin/pip install nncodec
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smask
from smask import named_nets
from smask.conversion.converter import convert_checkpoint
from smask.conversion.goals import size_of
from smask.conversion.networks import model_of
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import load_dataset

# What runs in the environment of the rival: trellis quantisation and DeepCABAC at their defaults, and back.
RIVAL = """
import json, sys, tempfile, time
import numpy as np
from importlib.metadata import version
from nncodec import nn
source, qp, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with np.load(source) as file:
    tensors = {name: file[name] for name in file.files}
started = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    stream = nn.encode(tensors, {"qp": qp, "verbose": False, "results": folder})
encoded = time.perf_counter()
decoded = nn.decode(stream)
seconds = {"seconds_convert": encoded - started, "seconds_decode": time.perf_counter() - encoded}
np.savez(out, **decoded)
print(json.dumps({"n_bytes": len(stream), "version": version("nncodec"), **seconds}))
"""


@dataclass(frozen=True)
class Method:
    """A way to make a checkpoint small.

    Attributes:
        label: In the picture.
        settings: From the command line, one a point; none for a method that was not asked for.
        point: Makes one point: setting to (model as read back, what is known beside its accuracy).
    """

    label: str
    settings: Callable[[argparse.Namespace], list[str]]
    point: Callable[[argparse.Namespace, dict[str, Any], str, Path], tuple[torch.nn.Module, dict[str, Any]]]


def data_free(
    arguments: argparse.Namespace, arch: dict[str, Any], setting: str, folder: Path
) -> tuple[torch.nn.Module, dict[str, Any]]:
    return _data_free(arguments, arch, setting, folder)


def folded(
    arguments: argparse.Namespace, arch: dict[str, Any], setting: str, folder: Path
) -> tuple[torch.nn.Module, dict[str, Any]]:
    return _data_free(arguments, arch, setting, folder, fold_norms=True)


def _data_free(
    arguments: argparse.Namespace, arch: dict[str, Any], size: str, folder: Path, *, fold_norms: bool = False
) -> tuple[torch.nn.Module, dict[str, Any]]:
    out = folder / "out.smask"
    report = convert_checkpoint(
        arguments.checkpoint, out, target_size=size, arch=arch, overwrite=True, fold_norms=fold_norms
    )
    started = time.perf_counter()
    smask.decode(out)
    known = {"n_bytes": report.n_bytes, "seconds_convert": report.seconds, "error": round(report.error, 5)}
    return smask.load(out), known | {"seconds_decode": time.perf_counter() - started}


def calibrated(
    arguments: argparse.Namespace, arch: dict[str, Any], setting: str, folder: Path
) -> tuple[torch.nn.Module, dict[str, Any]]:
    out, data = folder / "out.smask", load_dataset(arguments.eval)
    size, _, epochs = setting.partition("@")
    report = convert_checkpoint(
        arguments.checkpoint, out, target_size=size, arch=arch, overwrite=True, refine=int(epochs or 0),
        calibrate=data.sample(arguments.samples), trained=_say,
    )  # fmt: skip
    known = {"n_bytes": report.n_bytes, "seconds_convert": report.seconds, "n_samples": arguments.samples}
    return smask.load(out), known | {"epochs": int(epochs or 0)}


def _say(step: int, n_steps: int, loss: float) -> None:
    if step % 100 == 0:
        print(f"step {step}/{n_steps}, loss {loss:.4f}", file=sys.stderr)


def nncodec(
    arguments: argparse.Namespace, arch: dict[str, Any], setting: str, folder: Path
) -> tuple[torch.nn.Module, dict[str, Any]]:
    model = model_of(arguments.checkpoint, arch)
    state = model.state_dict()
    source, out = folder / "in.npz", folder / "out.npz"
    np.savez(source, **{name: tensor.float().numpy() for name, tensor in state.items() if tensor.is_floating_point()})
    command = [arguments.nncodec, "-c", RIVAL, str(source), setting, str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    with np.load(out) as file:
        for name in file.files:
            state[name] = torch.from_numpy(file[name]).reshape(state[name].shape).to(state[name].dtype)
    model.load_state_dict(state)
    return model, json.loads(done.stdout.strip().splitlines()[-1])


METHODS = {
    "data-free": Method("smask, data-free", lambda arguments: _parts(arguments.sizes), data_free),
    "folded": Method("smask, data-free, norms folded", lambda arguments: _parts(arguments.folded), folded),
    "calibrated": Method("smask, calibrated", lambda arguments: _parts(arguments.calibrated), calibrated),
    "nncodec": Method("NNCodec 2", lambda arguments: _parts(arguments.qps) if arguments.nncodec else [], nncodec),
}


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    mean, std = ([float(part) for part in _parts(text)] or None for text in (arguments.mean, arguments.std))
    arch = named_nets.architecture(arguments.arch, mean=mean, std=std)
    data = load_dataset(arguments.eval)
    what = {
        "checkpoint": arguments.checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest(),
        "arch": arguments.arch, "mean": arguments.mean, "std": arguments.std,
        "test_sha256": hashlib.sha256(data.x_test.numpy().tobytes() + data.y_test.numpy().tobytes()).hexdigest(),
        "n_test": len(data.x_test),
    }  # fmt: skip
    path = arguments.output.with_suffix(".json")
    report = json.loads(path.read_text()) if path.exists() else {**what, "original": None, "points": []}
    changed = [name for name in what if report.get(name) != what[name]]
    if changed:
        print(f"{path}: points of another run ({', '.join(changed)} differ); name another output", file=sys.stderr)
        return 2
    if report["original"] is None:
        report["original"] = {"accuracy": score(model_of(arguments.checkpoint, arch), data).accuracy,
                              "n_bytes": arguments.checkpoint.stat().st_size}  # fmt: skip
        _keep(path, report)
    wanted = [(method, setting) for method in METHODS for setting in METHODS[method].settings(arguments)]
    missing = [pair for pair in wanted if not any([p["method"], p["setting"]] == list(pair) for p in report["points"])]
    for index, (method, setting) in enumerate(missing):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            model, known = METHODS[method].point(arguments, arch, setting, Path(folder))
        point = {"method": method, "setting": setting, **known, "accuracy": score(model, data).accuracy}
        point = {name: round(value, 4) if isinstance(value, float) else value for name, value in point.items()}
        report["points"] = sorted(
            [*report["points"], {**point, "machine": facts()}], key=lambda point: (point["method"], point["n_bytes"])
        )
        _keep(path, report)
        seconds = time.perf_counter() - started
        print(f"{method} {setting}: {point['accuracy']:.2%} at {point['n_bytes']:,} bytes, {seconds:.0f} s, "
              f"{len(missing) - index - 1} to go", file=sys.stderr)  # fmt: skip
    _draw(report, arguments.output.with_suffix(".png"))
    print(json.dumps(report))
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("checkpoint", type=Path, help="a file that smask convert reads")
    option("--arch", required=True, help="named net or JSON file")
    option("--mean", default="", help="M,M,M of the inputs")
    option("--std", default="", help="S,S,S of the inputs")
    option("--eval", required=True, metavar="DATA", help="data whose test part counts, as for smask convert")
    option("--sizes", default="", help="target sizes with commas between them")
    option("--folded", default="", metavar="SIZES", help="the same with --fold-norms")
    option("--calibrated", default="", metavar="SIZE@EPOCHS,...", help="sizes with inputs of the training part of DATA")
    option("--samples", type=int, default=2000, help="these inputs, without labels (default %(default)s)")
    option("--nncodec", metavar="PYTHON", help="interpreter of an environment with nncodec")
    option("--qps", default="-36,-32,-28,-24,-22,-20,-18,-16", help="its quantisation parameters (default %(default)s)")
    option("-o", "--output", required=True, type=Path, metavar="OUT", help="OUT.json and OUT.png")
    arguments = parser.parse_args(argv)
    for size in _parts(f"{arguments.sizes},{arguments.folded},{arguments.calibrated}"):
        size_of(size.partition("@")[0])
    return arguments


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _keep(path: Path, report: dict[str, Any]) -> None:
    beside = path.with_suffix(".json.part")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


def _draw(report: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib, then run this again; the points are kept", file=sys.stderr)
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for method in METHODS:
        points = [point for point in report["points"] if point["method"] == method]
        if points:
            x, y = zip(*((point["n_bytes"] / 1000, 100 * point["accuracy"]) for point in points), strict=True)
            axes.plot(x, y, marker="o", markersize=4, label=METHODS[method].label)
    original = report["original"]
    label = f"original, {original['n_bytes'] / 1000:,.0f} kB"
    axes.axhline(100 * original["accuracy"], color="grey", linewidth=1, linestyle="--", label=label)
    lowest = min([point["accuracy"] for point in report["points"]], default=0.0)
    axes.set_ylim(bottom=100 * max(lowest - 0.01, original["accuracy"] - 0.15))
    axes.set_xlabel("file, kB")
    axes.set_ylabel(f"accuracy on {report['n_test']:,} test inputs, %")
    axes.set_title(report["checkpoint"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    raise SystemExit(main())
