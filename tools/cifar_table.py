"""Searches of CIFAR-10, whole: docs/cifar.json and the table of the README.

    python tools/cifar_table.py --data cifar10.npz                        # on a CUDA device a minute or two each
    python tools/cifar_table.py --data cifar10.npz --only "resnet18, begun"     # trains a net, begins as it
    python tools/cifar_table.py --data cifar10.npz --only conv8 --device cpu    # an hour where the processor has AMX
    python tools/cifar_table.py --data cifar10.npz --only "short resnet18" --device cpu      # more than two hours
    python tools/cifar_table.py --tables                          # only the table of the README

The data are arrays x_train, y_train, x_test and y_test, uint8 and [N, 32, 32, 3], in the official split. Searches that
were run are kept in the report; those that are not in it are left out of the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import write_table
from searches import reported
from smask.measurement import facts

OUT = Path(__file__).parents[1] / "docs/cifar.json"
ALWAYS = "--precision bf16 --flip --shift 4 --device"
# Options of a search, and what is published at about those bytes (edge-popup and its successors, see the README).
SEARCHES = {
    "conv6, large": ("--arch conv6 --density 0.157 --epochs 55", "82 % at ~133 kB"),
    "conv6, small": ("--arch conv6 --target-size 50kB --epochs 70", "79.2 % at ~52 kB"),
    "conv8, large": ("--arch conv8 --target-size 310kB --epochs 42", "85 % at ~310 kB"),
    "conv8, small": ("--arch conv8 --target-size 68kB --epochs 45", "80.9 % at ~68 kB"),
    "resnet18": (
        "--arch resnet18 --target-size 900kB --epochs 100 --erase 8 --label-smoothing 0.1",
        "94.66 % at ~1.0 MB",
    ),
    "short resnet18": (
        "--arch resnet18 --target-size 900kB --epochs 28 --erase 8 --label-smoothing 0.1",
        "94.66 % at ~1.0 MB",
    ),
    "resnet18, begun": (
        "--arch resnet18 --start trained.smask --target-size 900kB --epochs 150 --erase 8 --label-smoothing 0.1",
        "94.66 % at ~1.0 MB",
    ),
}
# Nets as which searches begin.
TRAININGS = {"resnet18, begun": "--arch resnet18 --epochs 60 --optimizer sgd --lr 0.1 --weight-decay 5e-4 --erase 8"}
KEPT = ("accuracy", "loss", "n_test", "n_bytes", "n_plane_bytes", "n_float_bytes", "n_overhead_bytes", "n_weights",
        "n_kept", "digest", "epochs", "seed", "seconds_search")  # fmt: skip


def rows(report: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| `smask encode --data cifar10.npz` … | accuracy | bytes | published | search | on |",
        "|---|---|---|---|---|---|",
    ]
    for name, (_, published) in SEARCHES.items():
        for found in report:
            if found["name"] == name:
                options = found["command"].partition("cifar10.npz ")[2].partition(f" {ALWAYS}")[0]
                right, seconds = f"{100 * found['accuracy']:.2f} %", f"{found['seconds_search']:.0f} s"
                if "training" in found:
                    first = found["training"]
                    seconds += f", {first['seconds']:.0f} s before to train ({100 * first['accuracy']:.2f} %)"
                machine = found["machine"]
                on_cuda, amx = "cuda" in found["command"], " with AMX" if machine.get("amx") else ""
                where = machine["cuda"] if on_cuda else f"{machine['torch_threads']} cores{amx}"
                lines.append(f"| `{options}` | {right} | {found['n_bytes']:,} | {published} | {seconds} | {where} |")
    return lines


def begun(name: str, data: str, always: str, output: str) -> dict[str, Any]:
    """Trains what a search begins as, if it begins so."""
    if name not in TRAININGS:
        return {}
    result = reported("train", ["--data", data, *f"{TRAININGS[name]} {always}".split()], output)
    command = f"smask train --data cifar10.npz {TRAININGS[name]} {always}"
    return {"training": {"command": command} | {key: result[key] for key in ("accuracy", "n_bytes", "seconds")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--device", default="cuda", help="of the searches (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], help="searches whose name begins so")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    report = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else []
    if not arguments.tables and arguments.data is None:
        parser.error("--data or --tables")
    always = f"{ALWAYS} {arguments.device}"
    for name, (options, _) in {} if arguments.tables else SEARCHES.items():
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            first = begun(name, arguments.data, always, f"{folder}/trained.smask")
            command = f"encode --data {arguments.data} {options} {always}".replace(
                "trained.smask", f"{folder}/trained.smask"
            )
            found = subprocess.run(
                [sys.executable, "-m", "smask", *command.split(), "-o", f"{folder}/found.smask", "--json"],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        result = json.loads(found.stdout)
        row = {"name": name, "command": f"smask encode --data cifar10.npz {options} {always}", **first}
        row["machine"] = facts()
        report = [*(one for one in report if one["name"] != name), row | {key: result[key] for key in KEPT}]
        OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_table("cifar", rows(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
