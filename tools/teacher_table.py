"""What a teacher brings at equal bytes, on MNIST with a 300-100 perceptron; keeps it in docs/teacher.json.

    python tools/teacher_table.py --data ../shared/data/mnist       # trains a teacher, then searches
    python tools/teacher_table.py --tables                          # only the table of the README

The teacher is `mnist-cnn`, trained here for some epochs by Adam on images moved by up to a pixel, as in the searches.
Every row is `smask encode` with all other options alike.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from readme import write_table
from searches import encode
from smask import architectures, named_nets
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, load_dataset

OUT = Path(__file__).parents[1] / "docs/teacher.json"
ARCH = "mnist-cnn"
WEIGHTS = (None, 0.5, 1.0)


def trained(data: str, epochs: int, path: Path) -> dict[str, Any]:
    """A teacher in a file; its accuracy and what it has to be told of its inputs."""
    dataset = load_dataset(data)
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture(ARCH, input_shape=dataset.input_shape, mean=mean, std=std))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    batches = Batches(dataset, batch_size=128, seed=0, shift=1)
    step = 0
    for _ in range(epochs):
        for x, y in batches:
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * (1 + math.cos(math.pi * step / (epochs * len(batches))))
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            step += 1
    torch.save(net.state_dict(), path)
    return {"arch": ARCH, "epochs": epochs, "mean": mean, "std": std, "accuracy": score(net, dataset).accuracy}


def search(weight: float | None, seed: int, arguments: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    options = ["--target-size", arguments.size, "--epochs", str(arguments.epochs), "--seed", str(seed)]
    taught = ["--teacher", str(arguments.teacher), "--teacher-arch", ARCH]
    for option in ("mean", "std"):
        taught += [f"--teacher-{option}", ",".join(map(str, about[option]))]
    taught = [] if weight is None else [*taught, "--teacher-weight", str(weight)]
    printed = encode(["--data", arguments.data, *options, *taught])
    keys = ("accuracy", "loss", "n_bytes", "n_kept", "n_weights", "epochs", "seed", "seconds_search")
    said = " ".join(["smask encode --data mnist", *options, *taught]).replace(str(arguments.teacher), "teacher.pt")
    return {"command": said, "weight": weight} | {key: printed[key] for key in keys}


def rows(report: dict[str, Any]) -> list[str]:
    lines = ["| part of the teacher | accuracy of each seed | mean | test loss | bytes |", "|---" * 5 + "|"]
    for weight in WEIGHTS:
        runs = [run for run in report["runs"] if run["weight"] == weight]
        if runs:
            each = ", ".join(f"{run['accuracy']:.2%}" for run in runs)
            mean, loss = (statistics.mean(run[key] for run in runs) for key in ("accuracy", "loss"))
            n_bytes = statistics.mean(run["n_bytes"] for run in runs)
            name = "none" if weight is None else f"{weight:g}" + (" (no labels)" if weight == 1 else "")
            lines.append(f"| {name} | {each} | {mean:.2%} | {loss:.4f} | {n_bytes:,.0f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--size", default="4kB")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--teacher", type=Path, default=Path("teacher.pt"), help="where it is kept, or is already")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("teacher", rows(json.loads(OUT.read_text())))
        return 0
    if not arguments.data:
        parser.error("--data is needed to measure")
    about_file = arguments.teacher.with_suffix(".json")
    if not about_file.exists():
        about_file.write_text(json.dumps(trained(arguments.data, arguments.teacher_epochs, arguments.teacher)))
    about = json.loads(about_file.read_text())
    report: dict[str, Any] = {"machine": facts(), "teacher": about, "runs": []}
    for seed in range(arguments.seeds):
        for weight in WEIGHTS:
            report["runs"].append(search(weight, seed, arguments, about))
            print(json.dumps(report["runs"][-1]), file=sys.stderr)
            OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_table("teacher", rows(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
