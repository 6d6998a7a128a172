"""What each search method reaches at equal bytes on MNIST with a 300-100 perceptron; keeps it in docs/methods.json.

    python tools/methods_table.py --data ../shared/data/mnist                # a quarter of an hour on one core
    python tools/methods_table.py --data ../shared/data/mnist --only auto    # one method; others stay
    python tools/methods_table.py --tables                                   # only the table of the README

Every row is `smask encode --method M --target-size SIZE` with all other options alike: the same steps, scales, biases,
seeds and coding, so that only the method differs. `coats` is what `auto` is at the smaller sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from readme import write_table
from searches import encode
from smask.measurement import facts
from smask.search.methods import METHODS

OUT = Path(__file__).parents[1] / "docs/methods.json"
COMPARED = [method for method in METHODS if method != "coats"]
SIZES = ("4kB", "8kB", "16kB")


def search(method: str, size: str, seed: int, epochs: int, data: str) -> dict[str, Any]:
    options = ["--method", method, "--target-size", size, "--epochs", str(epochs), "--seed", str(seed)]
    printed = encode(["--data", data, *options])
    keys = ("accuracy", "n_bytes", "n_kept", "n_weights", "epochs", "seed", "seconds_search")
    return {"command": " ".join(["smask encode --data mnist", *options])} | {key: printed[key] for key in keys}


def rows(report: dict[str, Any]) -> list[str]:
    sizes = report["sizes"]
    lines = [
        f"| method | {' | '.join(f'{size}: accuracy, bytes, kept' for size in sizes)} |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for method in COMPARED:
        if method not in report["methods"]:
            continue
        cells = []
        for size in sizes:
            runs = report["methods"][method][size]
            accuracy = statistics.mean(run["accuracy"] for run in runs)
            n_bytes = statistics.mean(run["n_bytes"] for run in runs)
            kept = statistics.mean(run["n_kept"] / run["n_weights"] for run in runs)
            cells.append(f"{accuracy:.2%}, {n_bytes:,.0f}, {kept:.1%}")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--only", default="", metavar="METHOD")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("methods", rows(json.loads(OUT.read_text())))
        return 0
    if not arguments.data:
        parser.error("--data is needed to measure")
    report = json.loads(OUT.read_text()) if OUT.exists() else {"methods": {}}
    report |= {"machine": facts(), "sizes": list(SIZES)}
    for method in COMPARED:
        if arguments.only in ("", method):
            print(method, file=sys.stderr)
            report["methods"][method] = {
                size: [search(method, size, seed, arguments.epochs, arguments.data) for seed in range(arguments.seeds)]
                for size in SIZES
            }
            OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_table("methods", rows(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
