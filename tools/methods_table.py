"""What each search method reaches at equal bytes on MNIST with a 300-100 perceptron; keeps it in docs/methods.json.

    python tools/methods_table.py --data ../shared/data/mnist                # ten minutes on one core
    python tools/methods_table.py --data ../shared/data/mnist --only auto    # one method; others stay
    python tools/methods_table.py --data ../shared/data/mnist --only auto multicoat --epochs 20    # rows of their own
    python tools/methods_table.py --tables                                   # only the table in docs/searches.md

Every row is `smask encode --method M --target-size SIZE` with all other options alike: the same steps, scales, biases,
seeds and coding, so that only the method differs. `auto` is `coats`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from pages import DOCS, write_table
from searches import encode
from smask.measurement import facts
from smask.search.choice import AUTO
from smask.search.methods import METHODS

OUT = DOCS / "methods.json"
COMPARED = [AUTO, *(method for method in METHODS if method != "coats")]
SIZES, EPOCHS = ("4kB", "8kB"), 5


def search(method: str, size: str, seed: int, epochs: int, data: str) -> dict[str, Any]:
    options = ["--method", method, "--target-size", size, "--epochs", str(epochs), "--seed", str(seed)]
    printed = encode(["--data", data, *options])
    keys = ("accuracy", "n_bytes", "n_kept", "n_weights", "epochs", "seed", "seconds_search")
    return {"command": " ".join(["smask encode --data mnist", *options])} | {key: printed[key] for key in keys}


def _epochs(name: str) -> int:
    """Of a row, ``METHOD`` or ``METHOD, N epochs``."""
    return int(name.split(",")[1].split()[0]) if "," in name else EPOCHS


def rows(report: dict[str, Any]) -> list[str]:
    sizes = report["sizes"]
    lines = [
        f"| method | {' | '.join(f'{size}: accuracy, bytes, kept' for size in sizes)} |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for method in sorted(report["methods"], key=lambda name: (_epochs(name), COMPARED.index(name.split(",")[0]))):
        cells = []
        for size in sizes:
            runs = report["methods"][method][size]
            accuracy = statistics.mean(run["accuracy"] for run in runs)
            n_bytes = statistics.mean(run["n_bytes"] for run in runs)
            kept = statistics.mean(run["n_kept"] / run["n_weights"] for run in runs)
            cells.append(f"{accuracy:.2%}, {n_bytes:,.0f}, {kept:.1%}")
        name, *long = method.split(", ")
        lines.append(f"| {', '.join([f'`{name}`', *long])} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--only", nargs="+", default=COMPARED, metavar="METHOD", choices=COMPARED)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("methods", rows(json.loads(OUT.read_text())), page=DOCS / "searches.md")
        return 0
    if not arguments.data:
        parser.error("--data is needed to measure")
    report = json.loads(OUT.read_text()) if OUT.exists() else {"methods": {}}
    report |= {"machine": facts(), "sizes": list(SIZES)}
    for method in arguments.only:
        print(method, file=sys.stderr)
        row = method if arguments.epochs == EPOCHS else f"{method}, {arguments.epochs} epochs"
        report["methods"][row] = {
            size: [search(method, size, seed, arguments.epochs, arguments.data) for seed in range(arguments.seeds)]
            for size in SIZES
        }
        OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_table("methods", rows(report), page=DOCS / "searches.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
