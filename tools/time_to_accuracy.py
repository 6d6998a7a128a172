"""Time to an accuracy: searching a mask against plain training of the same net, each in as many passes as it needs.

    python tools/time_to_accuracy.py                                            # digits, half a minute
    OMP_NUM_THREADS=1 python tools/time_to_accuracy.py --data ../shared/data/mnist --passes 1 2 3 4 5 7 10 14 \\
        --densities 0.04 0.2 0.5 --accuracies 97 97.5 98 98.25 98.5 --seeds 2 -o docs/time-to-accuracy.json    # eight
    python tools/time_to_accuracy.py --tables                                   # only the table in docs/speed.md

Every number of passes is a run of its own, `smask encode` and `smask train` with all defaults, whose rate falls to zero
in just these passes; the two take turns. An accuracy is reached by the fewest passes whose mean over the seeds is not
below it; seconds are those of the steps, without reading data or writing files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from pages import DOCS, write_table
from searches import reported
from smask.measurement import facts

KEPT = DOCS / "time-to-accuracy.json"
SECONDS = {"encode": "seconds_search", "train": "seconds"}


def run(command: str, data: str, n_passes: int, seed: int, options: list[str]) -> dict[str, Any]:
    printed = reported(command, ["--data", data, "--epochs", str(n_passes), "--seed", str(seed), *options])
    return {"accuracy": printed["accuracy"], "seconds": printed[SECONDS[command]], "n_bytes": printed["n_bytes"]}


def mean(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.mean(run[what] for run in runs)


def reached(found: dict[str, dict[int, list[dict[str, Any]]]], accuracy: float) -> dict[str, Any]:
    """Passes and seconds of either, and how many times as long the search took, where both got there."""
    row: dict[str, Any] = {"accuracy": accuracy}
    for kind, by_passes in found.items():
        enough = [n for n, runs in by_passes.items() if mean(runs, "accuracy") >= accuracy]
        if enough:
            row[kind] = {"passes": min(enough), "seconds": round(mean(by_passes[min(enough)], "seconds"), 2)}
    kinds = list(found)
    if all(kind in row for kind in kinds):
        row["search_over_training"] = round(row[kinds[0]]["seconds"] / row[kinds[1]]["seconds"], 3)
    return row


def table(report: dict[str, Any]) -> list[str]:
    """A line for each accuracy: passes and seconds of the training, and of the searches, with the ratio."""
    kinds = list(report["rows"])
    lines = [
        f"| accuracy | `smask train` | {' | '.join(f'`{kind}`' for kind in kinds)} |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    for rows in zip(*report["rows"].values(), strict=True):
        cells = [f"{100 * rows[0]['accuracy']:g} %"]
        for kind in ("smask train", *kinds):
            row = rows[0] if kind == "smask train" else rows[kinds.index(kind)]
            found, ratio = row.get(kind), row.get("search_over_training")
            over = f" ({ratio:.2f})" if ratio and kind in kinds else ""
            cells.append(f"{found['passes']} in {found['seconds']:.1f} s{over}" if found else "not reached")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--passes", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--accuracies", type=float, nargs="+", default=[90, 95], help="percent")
    parser.add_argument("--densities", type=float, nargs="+", help="of the searches (default: that of smask encode)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("time", table(json.loads(KEPT.read_text())), page=DOCS / "speed.md")
        return 0
    densities = [["--density", str(density)] for density in arguments.densities or ()] or [[]]
    searches = {" ".join(["smask encode", *options]): ("encode", options) for options in densities}
    kinds: dict[str, tuple[str, list[str]]] = searches | {"smask train": ("train", [])}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {kind: {} for kind in kinds}
    for n_passes in sorted(arguments.passes):
        for seed in range(arguments.seeds):
            for kind, (command, options) in kinds.items():
                one = run(command, arguments.data, n_passes, seed, options)
                found[kind].setdefault(n_passes, []).append(one)
                print(
                    f"{kind}, {n_passes} passes, seed {seed}: {one['accuracy']:.2%}, {one['seconds']:.1f} s",
                    file=sys.stderr,
                )
    rows = {
        kind: [reached({kind: found[kind], "smask train": found["smask train"]}, a / 100) for a in arguments.accuracies]
        for kind in searches
    }
    command = ["python tools/time_to_accuracy.py", *(Path(w).name if w == arguments.data else w for w in sys.argv[1:])]
    report = {"machine": facts(), "command": " ".join(command), "rows": rows, "runs": found}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
