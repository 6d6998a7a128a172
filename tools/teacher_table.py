"""What a teacher brings at equal bytes, on MNIST with a 300-100 perceptron; keeps it in docs/teacher.json.

    python tools/teacher_table.py --data ../shared/data/mnist       # trains a teacher, then searches: reduced
    python tools/teacher_table.py --data DIR --long                 # and the search without a teacher in full length
    python tools/teacher_table.py --data DIR --epochs 0             # all in full length
    python tools/teacher_table.py --tables                          # only the table in docs/searches.md

The teacher is `mnist-cnn`, trained here for some epochs by Adam on images moved by up to a pixel, as in the searches.
Every row is `smask encode` with all other options alike. Searches that the report has are not repeated, unless size,
teacher or machine are others.
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

from pages import DOCS, write_table
from searches import encode
from smask import architectures, named_nets
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, load_dataset

OUT = DOCS / "teacher.json"
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


def search(
    weight: float | None, epochs: int, seed: int, arguments: argparse.Namespace, report: dict[str, Any]
) -> dict[str, Any]:
    about = report["teacher"]
    options = ["--target-size", arguments.size, "--seed", str(seed)]
    options += ["--epochs", str(epochs)] if epochs else []
    taught = ["--teacher", str(arguments.teacher), "--teacher-arch", ARCH]
    for option in ("mean", "std"):
        taught += [f"--teacher-{option}", ",".join(map(str, about[option]))]
    taught = [] if weight is None else [*taught, "--teacher-weight", str(weight)]
    said = " ".join(["smask encode --data mnist", *options, *taught]).replace(str(arguments.teacher), "teacher.pt")
    for run in report["runs"]:
        if run["command"] == said:
            return run
    printed = encode(["--data", arguments.data, *options, *taught])
    keys = ("accuracy", "loss", "n_bytes", "n_kept", "n_weights", "epochs", "seed", "seconds_search")
    return {"command": said, "weight": weight} | {key: printed[key] for key in keys}


def rows(report: dict[str, Any]) -> list[str]:
    teacher, begin = report["teacher"], "A reduced run, at" if report["reduced"] else "At"
    lines = [
        f"{begin} most {report['size']}; the teacher, `{teacher['arch']}` after {teacher['epochs']} epochs, is "
        f"right on {teacher['accuracy']:.2%} of the test images:",
        "",
        "| part of the teacher | epochs | accuracy of each seed | mean | test loss | bytes | seconds |",
        "|---" * 7 + "|",
    ]  # fmt: skip
    for weight in WEIGHTS:
        for epochs in sorted({run["epochs"] for run in report["runs"] if run["weight"] == weight}):
            runs = [run for run in report["runs"] if (run["weight"], run["epochs"]) == (weight, epochs)]
            each = ", ".join(f"{run['accuracy']:.2%}" for run in runs)
            mean, loss = (statistics.mean(run[key] for run in runs) for key in ("accuracy", "loss"))
            n_bytes, seconds = (statistics.mean(run[key] for run in runs) for key in ("n_bytes", "seconds_search"))
            name = "none" if weight is None else f"{weight:g}" + (" (no labels)" if weight == 1 else "")
            lines.append(f"| {name} | {epochs} | {each} | {mean:.2%} | {loss:.4f} | {n_bytes:,.0f} | {seconds:.0f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--size", default="4kB")
    parser.add_argument("--epochs", type=int, default=5, help="of a search, 0 for as many as it takes by itself")
    parser.add_argument("--long", action="store_true", help="also search without a teacher in full length")
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--teacher", type=Path, default=Path("teacher.pt"), help="where it is kept, or is already")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("teacher", rows(json.loads(OUT.read_text())), page=DOCS / "searches.md")
        return 0
    if not arguments.data:
        parser.error("--data is needed to measure")
    about_file = arguments.teacher.with_suffix(".json")
    if not about_file.exists():
        about_file.write_text(json.dumps(trained(arguments.data, arguments.teacher_epochs, arguments.teacher)))
    about = json.loads(about_file.read_text())
    report: dict[str, Any] = {
        "machine": facts(), "teacher": about, "size": arguments.size, "reduced": bool(arguments.epochs), "runs": []
    }  # fmt: skip
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    if all(kept.get(key) == report[key] for key in ("machine", "teacher", "size")):
        report["runs"] = kept["runs"]
    settings = [(weight, arguments.epochs) for weight in WEIGHTS] + [(None, 0)] * arguments.long
    for seed in range(arguments.seeds):
        for weight, epochs in settings:
            run = search(weight, epochs, seed, arguments, report)
            report["runs"] += [] if run in report["runs"] else [run]
            print(json.dumps(run), file=sys.stderr)
            OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_table("teacher", rows(report), page=DOCS / "searches.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
