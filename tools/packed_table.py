"""Runs `smask bench` for docs/packed.md and keeps what it prints in docs/bench.json, bench-amx.json or bench-cuda.json.

    python tools/packed_table.py            # some five minutes on two cores; nothing else should run meanwhile; a
                                            # processor with AMX has a table of its own
    python tools/packed_table.py --cuda     # some three minutes on a CUDA device, half to compile
    python tools/packed_table.py --tables   # only the tables in docs/packed.md

Needs 2 GB of memory for the dense rivals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from pages import DOCS, write_table

RUNS = {
    "packed": (
        "smask bench --shape 4096x4096 --kernels integer,int8,tiled --rounds 15 --json",
        "smask bench --shape 8192x8192 --kernels integer,int8 --rounds 15 --json",
        "smask bench --shape 4096x4096 --planes 2 --batch 1,16,64 --kernels integer,int8 --rounds 15 --json",
    ),
    "packed-cuda": (
        "smask bench --device cuda --shape 8192x8192 --batch 1,2,4,8,16,64,256,1024 --kernels float8,tiled --json",
        "smask bench --device cuda --shape 4096x4096 --batch 1,64,1024 --kernels float8,tiled --json",
    ),
}
RUNS["packed-amx"] = RUNS["packed"]
FILES = {
    "packed": DOCS / "bench.json", "packed-amx": DOCS / "bench-amx.json", "packed-cuda": DOCS / "bench-cuda.json",
}  # fmt: skip
RIVALS = ("dense float32", "dense bfloat16", "int4pack", "materialised")
HEAD = "| weights | rows | kernel | ms | × fp32 | × bf16 | × int4 | × regenerated |"
HEADS = {
    "packed": HEAD + " `int8` × fp32 | error | peak MB |",
    "packed-amx": HEAD + " `int8` × fp32 | error | peak MB |",
    "packed-cuda": HEAD + " launched singly, ms | × bf16 | error | peak MB |",
}


def rows(name: str, report: list[dict[str, Any]]) -> list[str]:
    lines = [HEADS[name], "|---" * (HEADS[name].count("|") - 1) + "|"]
    for run in report:
        for table in run["tables"]:
            of = {row["name"]: row for row in table["rows"]}
            auto = of["auto"]
            shape = f"{table['shape'][0]} × {table['shape'][1]}, {table['planes'] + 1} bits"
            cells = [shape, table["batch"], table["chosen"]]
            cells.append(f"{auto['milliseconds']:.{4 if name == 'packed-cuda' else 2}f}")
            cells += [f"{auto['times_faster'][rival]:.2f}" if rival in of else "" for rival in RIVALS]
            if name != "packed-cuda":
                cells.append(f"{of['int8']['times_faster']['dense float32']:.2f}")
            else:
                single = auto["launched_milliseconds"]
                cells += [f"{single:.3f}", f"{of['dense bfloat16']['launched_milliseconds'] / single:.2f}"]
            peak = auto["peak_bytes"]
            cells += [f"{auto['error']:.0e}", "" if peak is None else f"{peak / 1e6:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="the table of a CUDA device instead of that of a processor")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    arguments = parser.parse_args()
    if not arguments.tables:
        of_cpu = "packed-amx" if torch.cpu._is_amx_tile_supported() else "packed"
        name, report = "packed-cuda" if arguments.cuda else of_cpu, []
        for command in RUNS[name]:
            done = subprocess.run(
                [sys.executable, "-m", *command.split()], check=True, stdout=subprocess.PIPE, text=True
            )
            report.append({"command": command} | json.loads(done.stdout))
        FILES[name].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, path in FILES.items():
        if path.exists():
            write_table(name, rows(name, json.loads(path.read_text(encoding="utf-8"))), page=DOCS / "packed.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
