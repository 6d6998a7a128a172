"""Runs the commands behind every figure of the README and keeps what they print in docs/measurements.json.

    python tools/measurements.py --data ../shared/data                  # everything, about half an hour on two cores
    python tools/measurements.py --data ../shared/data --only lenet     # those whose name contains a word; others stay

--data is a folder with the idx files of MNIST in mnist/ and of Fashion-MNIST in fashion_mnist/. Nothing else should run
on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import facts

OUT = Path(__file__).parents[1] / "docs/measurements.json"
TOOLS = Path(__file__).parent
MNIST, FASHION = "DATA/mnist", "DATA/fashion_mnist"
SEARCHES = {
    "digits": [],
    "mnist lenet-300-100": ["--data", MNIST],
    "mnist lenet-300-100 3 %": ["--data", MNIST, "--density", "0.03"],
    "mnist lenet-300-100 2 %": ["--data", MNIST, "--density", "0.02"],
    "mnist lenet-300-100 1 %": ["--data", MNIST, "--density", "0.01"],
    "fashion-mnist lenet-300-100": ["--data", FASHION],
    "mnist-cnn 50 %": ["--data", MNIST, "--arch", "mnist-cnn", "--density", "0.5", "--epochs", "20", "--shift", "0"],
}
FIGURES = {
    "step_cost": ["step_cost.py"],
    "decode_speed": ["decode_speed.py"],
    "codings": ["codings_table.py", "--json", "FILES/mnist_lenet-300-100.smask"],
}


def search(name: str, options: list[str], data: str, folder: str) -> dict[str, Any]:
    output = f"{folder}/{name.replace(' ', '_')}.smask"
    command = ["smask", "encode", *options, "--json", "-q", "-o", output]
    printed = json.loads(run([part.replace("DATA", data) for part in ["-m", *command]]))
    shown = " ".join(["smask", "encode", *options]).replace("DATA/", "")
    return {"command": shown} | {key: value for key, value in printed.items() if key not in ("file", "data")}


def run(command: list[str]) -> str:
    return subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True, cwd=TOOLS).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--only", default="", metavar="WORD")
    arguments = parser.parse_args()
    report = json.loads(OUT.read_text()) if OUT.exists() else {"searches": {}}
    report["machine"] = facts()
    with tempfile.TemporaryDirectory() as folder:
        for name, options in SEARCHES.items():
            needed = arguments.only in "codings" and name == "mnist lenet-300-100"
            if arguments.only in name or needed:
                print(name, file=sys.stderr)
                report["searches"][name] = search(name, options, str(Path(arguments.data).resolve()), folder)
        for name, command in FIGURES.items():
            if arguments.only in name:
                print(name, file=sys.stderr)
                figures = json.loads(run([part.replace("FILES", folder) for part in command]))
                report[name] = {key: value for key, value in figures.items() if key != "machine"}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
