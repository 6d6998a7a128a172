"""What searched signs, ramps, decay, Muon and a trained start bring to masks of a deep net; in docs/ablations.json.

    python tools/ablations_table.py --data cifar10.npz                     # nine minutes a search on one core with AMX
    python tools/ablations_table.py --data cifar10.npz --only "as it is" "signs of the seed" --seeds 2
    python tools/ablations_table.py --tables                               # only the table in docs/ablations.md

The same search of a narrow ResNet-18 on 12,500 images of CIFAR-10, scored on all test images, with one part of it taken
out at a time; files have the same bytes, but for some hundred where a fifth of the weights is kept. The data are arrays
x_train, y_train, x_test and y_test, uint8 and [N, 32, 32, 3]. Searches that the report has already are not run again
unless they are named by --only. Several of these commands may run side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pages import DOCS, write_table
from searches import reported
from smask.measurement import facts

OUT = DOCS / "ablations.json"
N_IMAGES = 12_500
COMMON = "--arch resnet18:16 --precision bf16 --flip --shift 4 --device cpu"
SEARCH = f"{COMMON} --epochs 30"
TRAINING = f"{COMMON} --epochs 60 --optimizer sgd --lr 0.1 --weight-decay 5e-4"
OPTIONS = {"signs": "--method signs --target-size 67.4kB", "single": "--method single --density 0.2"}
SEED, BEGUN = "signs of the seed", "begun as a net trained in 60 passes"
# Method and its fields, and for ramps of short rows the part of the way after which they end.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "as it is": ("signs", {}),
    BEGUN: ("signs", {}),
    "without ramps": ("signs", {"ramp": 0.0}),
    "without decay": ("signs", {"decays": False}),
    "without Muon": ("signs", {"turns": False}),
    SEED: ("single", {}),
    f"{SEED}, without ramps": ("single", {"ramp": 0.0}),
    f"{SEED}, without decay": ("single", {"decays": False}),
    f"{SEED}, without Muon": ("single", {"turns": False}),
    f"{SEED}, ramps of short rows as long as others": ("single", {"part_of_few": 1.0}),
    f"{SEED}, without ramps, decay and Muon": ("single", {"ramp": 0.0, "decays": False, "turns": False}),
}


def search(variant: str, words: list[str]) -> int:
    """`smask` with this variant of the method, in this process."""
    from smask.cli.main import main as smask
    from smask.search import ramps
    from smask.search.methods import METHODS

    method, fields = VARIANTS[variant]
    changes = dict(fields)
    ramps.PART_OF_FEW = changes.pop("part_of_few", ramps.PART_OF_FEW)
    METHODS[method] = replace(METHODS[method], **changes)  # type: ignore[index]
    return smask(words)


def write_part(source: str, path: str) -> None:
    """The first images of every class, as many of each."""
    with np.load(source) as data:
        arrays = {name: data[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    classes = np.unique(arrays["y_train"])
    each = [np.flatnonzero(arrays["y_train"] == one)[: N_IMAGES // len(classes)] for one in classes]
    chosen = np.sort(np.concatenate(each))
    np.savez(path, **arrays | {name: arrays[name][chosen] for name in ("x_train", "y_train")})


def measured(variant: str, seed: int, data: str, folder: str) -> dict[str, Any]:
    own = OPTIONS[VARIANTS[variant][0]]
    options = ["encode", "--data", data, *SEARCH.split(), *own.split(), "--seed", str(seed), "--json", "-q"]
    log, output = f"{folder}/log.jsonl", f"{folder}/out.smask"
    words = [sys.executable, __file__, "--variant", variant, *options, "--force", "--log", log, "-o", output]
    start = {}
    if variant == BEGUN:
        trained, said = f"{folder}/trained-{seed}.smask", Path(folder, f"trained-{seed}.json")
        if not said.exists():
            first = reported("train", ["--data", data, *TRAINING.split(), "--seed", str(seed), "--force"], trained)
            said.write_text(json.dumps(first), encoding="utf-8")
        first = json.loads(said.read_text(encoding="utf-8"))
        start = {"start": {key: first[key] for key in ("accuracy", "n_bytes", "epochs")}}
        words += ["--start", trained]
    printed = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    with Path(log).open(encoding="utf-8") as lines:
        steps = [
            line for line in map(json.loads, lines) if line["event"] == "progress" and line["accuracy"] is not None
        ]
    # Of the images of the last five reports, changed as in training.
    right = statistics.mean(line["accuracy"] for line in steps[-5:])
    keys = ("accuracy", "n_bytes", "epochs", "seed", "seconds_search")
    return {key: printed[key] for key in keys} | start | {"training_accuracy": right, "machine": facts()}


def kept(report: dict[str, Any], variant: str, found: dict[str, Any]) -> dict[str, Any]:
    """The report with one more search, beside what others have written meanwhile."""
    variants = json.loads(OUT.read_text(encoding="utf-8"))["variants"] if OUT.exists() else report["variants"]
    others = [one for one in variants.get(variant, []) if one["seed"] != found["seed"]]
    variants[variant] = sorted([*others, found], key=lambda one: one["seed"])
    report = report | {"variants": variants}
    OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def rows(report: dict[str, Any]) -> list[str]:
    lines = ["| | bytes | test images, each seed | mean | training images |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        found = report["variants"].get(variant, [])
        if found:
            each = ", ".join(f"{100 * one['accuracy']:.1f}" for one in found)
            means = [statistics.mean(one[key] for one in found) for key in ("accuracy", "training_accuracy")]
            n_bytes = max(one["n_bytes"] for one in found)
            begun = ", ".join(f"{100 * one['start']['accuracy']:.1f}" for one in found if "start" in one)
            named = f"{variant} (by SGD, {begun} %)" if begun else variant
            lines.append(f"| {named} | {n_bytes:,} | {each} % | {100 * means[0]:.1f} % | {100 * means[1]:.1f} % |")
    return lines


def main() -> int:
    if sys.argv[1:2] == ["--variant"]:
        return search(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=VARIANTS, help="measured anew")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", metavar="DIR", help="trained nets stay there, and are not trained again")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if not arguments.tables and arguments.data is None:
        parser.error("--data or --tables")
    command = f"smask encode --data part.npz {SEARCH}"
    variants = json.loads(OUT.read_text(encoding="utf-8"))["variants"] if OUT.exists() else {}
    report: dict[str, Any] = {
        "command": command, "training": f"smask train --data part.npz {TRAINING}", "options": OPTIONS,
        "n_images": N_IMAGES, "variants": variants,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or temporary
        if not arguments.tables:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_part(arguments.data, f"{folder}/part.npz")
            for seed in arguments.seeds:
                for variant in arguments.only or VARIANTS:
                    done = seed in [one["seed"] for one in report["variants"].get(variant, [])]
                    if arguments.only or not done:
                        print(f"{variant}, seed {seed}", file=sys.stderr)
                        report = kept(report, variant, measured(variant, seed, f"{folder}/part.npz", folder))
    write_table("ablations", rows(report), page=DOCS / "ablations.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
