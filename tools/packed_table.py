"""Runs `smask bench` for the README and keeps what it prints in docs/bench.json.

    python tools/packed_table.py            # some five minutes on two cores; nothing else should run meanwhile
    python tools/packed_table.py --tables   # only the table of the README

Needs 2 GB of memory for the dense rivals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from readme import write_table

OUT = Path(__file__).parents[1] / "docs/bench.json"
RUNS = (
    "smask bench --shape 4096x4096 --kernels integer,int8,tiled --rounds 15 --json",
    "smask bench --shape 8192x8192 --kernels integer,int8 --rounds 15 --json",
    "smask bench --shape 4096x4096 --planes 2 --batch 1,16,64 --kernels integer,int8 --rounds 15 --json",
)
RIVALS = ("dense float32", "dense bfloat16", "int4pack", "materialised")


def rows(report: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| weights | rows | kernel | ms | × fp32 | × bf16 | × int4 | × regenerated | `int8` × fp32 | error | peak MB |",
        "|---" * 11 + "|",
    ]
    for run in report:
        for table in run["tables"]:
            of = {row["name"]: row for row in table["rows"]}
            auto, single = of["auto"], of["int8"]
            shape = f"{table['shape'][0]} × {table['shape'][1]}, {table['planes'] + 1} bits"
            cells = [shape, table["batch"], table["chosen"], f"{auto['milliseconds']:.2f}"]
            cells += [f"{auto['times_faster'][rival]:.2f}" for rival in RIVALS]
            cells += [f"{single['times_faster']['dense float32']:.2f}", f"{auto['error']:.0e}"]
            peak = auto["peak_bytes"]
            cells.append("" if peak is None else f"{peak / 1e6:.1f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    if not parser.parse_args().tables:
        report = []
        for command in RUNS:
            done = subprocess.run(
                [sys.executable, "-m", *command.split()], check=True, stdout=subprocess.PIPE, text=True
            )
            report.append({"command": command} | json.loads(done.stdout))
        OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_table("packed", rows(json.loads(OUT.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
