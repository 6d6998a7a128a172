"""Runs the commands behind figures of README and docs/speed.md and keeps what they print in docs/measurements.json.

    python tools/measurements.py --data ../shared/data                  # everything, about half an hour on two cores
    python tools/measurements.py --data ../shared/data --only lenet     # those whose name contains a word; others stay
    python tools/measurements.py --tables                               # only the tables

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

from pages import DOCS, write_table
from searches import encode
from smask.measurement import facts

OUT = DOCS / "measurements.json"
TOOLS = Path(__file__).parent
RIVALS = ("zstd19_packed_of_entropy", "best_of_zlib_bz2_lzma_of_entropy")
MNIST, FASHION = "DATA/mnist", "DATA/fashion_mnist"
FASHION_SIZES = {"10kB": ["--label-smoothing", "0.05"], "20kB": ["--label-smoothing", "0.1"]}
SEARCHES = {
    "digits": [],
    "mnist lenet-300-100": ["--data", MNIST],
    **{
        f"mnist lenet-300-100 {size} seed {seed}": ["--data", MNIST, "--target-size", size, "--seed", str(seed)]
        for size in ("4kB", "6.5kB", "10kB")
        for seed in (0, 1)
    },
    **{
        f"fashion-mnist lenet-300-100 {size} seed {seed}": [
            "--data", FASHION, "--target-size", size, "--shift", "0", "--flip", *own, "--epochs", "60",
            "--seed", str(seed),
        ]
        for size, own in FASHION_SIZES.items()
        for seed in (0, 1)
    },
    "mnist-cnn 50 %": [
        "--data", MNIST, "--arch", "mnist-cnn", "--method", "single", "--density", "0.5", "--epochs", "20",
        "--shift", "0",
    ],
}  # fmt: skip
FIGURES = {
    "step_cost": ["step_cost.py"],
    "decode_speed": ["decode_speed.py"],
    "codings": ["codings_table.py", "--json", "FILES/mnist_lenet-300-100.smask"],
}


def search(name: str, options: list[str], data: str, folder: str) -> dict[str, Any]:
    output = f"{folder}/{name.replace(' ', '_')}.smask"
    printed = encode([part.replace("DATA", data) for part in options], output)
    shown = " ".join(["smask", "encode", *options]).replace("DATA/", "")
    kept = {key: value for key, value in printed.items() if key not in ("file", "data")}
    return {"command": shown, "machine": facts()} | kept


def run(command: list[str]) -> str:
    return subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True, cwd=TOOLS).stdout


def keep(report: dict[str, Any]) -> None:
    OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def write_tables(report: dict[str, Any]) -> int:
    """Puts the tables between their marks."""
    write_table("searches", search_rows(report))
    write_table("figures", figure_rows(report), page=DOCS / "speed.md")
    return 0


def search_rows(report: dict[str, Any]) -> list[str]:
    rows = ["| command | accuracy | bytes | kept | bits a weight | fp32 bytes | search |", "|---" * 7 + "|"]
    for run in report["searches"].values():
        cells = (
            f"`{run['command']}`", f"{100 * run['accuracy']:.2f} %", f"{run['n_bytes']:,}",
            f"{100 * run['n_kept'] / run['n_weights']:.1f} %", f"{run['bits_per_weight']:.3f}",
            f"{run['fp32_bytes']:,}", f"{run['seconds_search']:.0f} s",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def figure_rows(report: dict[str, Any]) -> list[str]:
    rows = ["| a search step on | over a training step | over a step that sorts all scores |", "|---|---|---|"]
    for net, row in report["step_cost"]["rows"].items():
        ratios = (row["search_over_training"]["median"], row["search_over_sorting"]["median"])
        rows.append(f"| {net} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    speed = report["decode_speed"]["giga_weights_per_s"]
    rows += ["", f"| {report['decode_speed']['n_weights'] / 1e6:.0f} million weights | 10⁹ weights/s |", "|---|---|"]
    rows += [f"| {name} | {value:.2f} |" for name, value in speed.items()]
    rows += ["", "| bits | coding | over entropy | packed, zstd-19 | best of zlib, bz2, lzma | MB/s coded, decoded |"]
    rows += ["|---" * 6 + "|"]
    for name, row in report["codings"]["rows"].items():
        rivals = [f"{row[key]:.3f}" if key in row else "" for key in RIVALS]
        speeds = f"{row['encode_mb_per_s']:.0f}, {row['decode_mb_per_s']:.0f}" if "encode_mb_per_s" in row else ""
        rows.append(f"| {name} | {row.get('coding', '')} | {row['of_entropy']:.3f} | {' | '.join(rivals)} | {speeds} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    arguments = parser.parse_args()
    if arguments.tables:
        return write_tables(json.loads(OUT.read_text()))
    if not arguments.data:
        parser.error("--data is needed to measure")
    report = json.loads(OUT.read_text()) if OUT.exists() else {"searches": {}}
    report["searches"] = {name: run for name, run in report["searches"].items() if name in SEARCHES}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in SEARCHES.items():
            needed = arguments.only in "codings" and name == "mnist lenet-300-100"
            if arguments.only in name or needed:
                print(name, file=sys.stderr)
                report["searches"][name] = search(name, options, str(Path(arguments.data).resolve()), folder)
                keep(report)
        for name, command in FIGURES.items():
            if arguments.only in name:
                print(name, file=sys.stderr)
                report[name] = json.loads(run([part.replace("FILES", folder) for part in command]))
                keep(report)
    return write_tables(json.loads(OUT.read_text()))


if __name__ == "__main__":
    raise SystemExit(main())
