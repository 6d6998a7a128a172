"""What sparse training and drop-and-grow on frozen weights reach; keeps it in docs/sparse.json, writes docs/sparse.md.

    python tools/sparse_table.py rates --data ../shared/data/mnist                                  # ten minutes
    python tools/sparse_table.py trained --data ../shared/data/mnist ../shared/data/fashion_mnist   # half an hour
    python tools/sparse_table.py masks --data ../shared/data/mnist                                  # ten minutes
    python tools/sparse_table.py images --data cifar10.npz --device cuda                              # on a GPU
    python tools/sparse_table.py tables                                                             # only the page

`rates`: which learning rate suits each method, on training images set aside. `trained`, with these rates: `smask train
--sparse` with 300-100 at 90 and 98 % zeros, and the dense net, all for the same steps. `masks`: `smask encode
--target-size` with methods that exchange and methods that rank. `images`: ResNet-20 on CIFAR-10. Runs that
docs/sparse.json has of the same command are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from searches import reported
from smask import architectures, named_nets
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, load_dataset
from smask.training.sparse import METHODS, train_sparse

DOCS = Path(__file__).parents[1] / "docs"
OUT, PAGE = DOCS / "sparse.json", DOCS / "sparse.md"
DENSITIES = (0.1, 0.02)
SIZES = ("4kB", "8kB")
SEARCHES = ("auto", "edge-popup", "rigl-mask", "set-mask")
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
COMMON = {
    "trained": ("--arch", "lenet-300-100", "--shift", "0"),
    "images": ("--arch", "resnet20", "--shift", "4", "--flip", "--optimizer", "sgd", "--weight-decay", "5e-4"),
}
EPOCHS = {"rates": 5, "trained": 5, "masks": 5, "images": 160}
KEPT = ("accuracy", "n_bytes", "zstd_bytes", "fp32_bytes", "density", "densities", "itop_rate", "n_kept", "n_weights",
        "seconds", "seconds_search")  # fmt: skip


def rates(folder: str, epochs: int) -> list[dict[str, Any]]:
    """Accuracy on a sixth of the training images, of nets with 98 % zeros and dense ones, at every rate, one seed."""
    dataset = load_dataset(folder)
    mean, std = dataset.statistics()
    arch = named_nets.architecture("lenet-300-100", input_shape=dataset.input_shape, mean=mean, std=std)
    rest, aside = dataset.validation(1 / 6, seed=0)
    found = []
    for method in ("dense", *METHODS):
        for lr in RATES:
            sparse = {"method": "static", "density": 1.0} if method == "dense" else {"method": method, "density": 0.02}
            batches = Batches(rest, batch_size=128, seed=0)
            model = train_sparse(architectures.build(arch), batches, epochs=epochs, lr=lr, **sparse).model
            found.append({"method": method, "lr": lr, "accuracy": score(model, aside).accuracy})
            print(f"{method} {lr:g}: {found[-1]['accuracy']:.4f}", file=sys.stderr, flush=True)
    return found


def best_rates(report: Mapping[str, Any]) -> dict[str, str]:
    """The best rate of every method, as it is given on a command line."""
    groups = grouped(report["rates"]["runs"], "method")
    return {method: f"{max(runs, key=lambda run: run['accuracy'])['lr']:g}" for (method,), runs in groups.items()}


def wanted(
    part: str, data: Sequence[str], seeds: int, epochs: int, lrs: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What a run is, and the options of its command; all of a seed before the next."""
    for seed in range(seeds):
        for folder in data:
            about = {"data": Path(folder).stem, "seed": seed, "epochs": epochs}
            rest = ["--epochs", str(epochs), "--seed", str(seed)]
            if part == "masks":
                for size in SIZES:
                    for method in SEARCHES:
                        yield (
                            about | {"method": method, "size": size},
                            ["--method", method, "--target-size", size, *rest],
                        )
                continue
            rest = [*COMMON[part], *rest]
            for density, method in (
                (1.0, "dense"),
                *((density, method) for density in DENSITIES for method in METHODS),
            ):
                sparse = [] if method == "dense" else ["--sparse", method, "--density", str(density)]
                rate = ["--lr", lrs[method]] if method in lrs else []
                yield about | {"method": method, "density": density}, [*sparse, *rest, *rate]


def measured(part: str, about: Mapping[str, Any], options: Sequence[str], folder: str, device: str) -> dict[str, Any]:
    """One run."""
    command = "encode" if part == "masks" else "train"
    printed = reported(command, ["--data", folder, "--device", device, *options])
    # The density of the rows is that which was asked for.
    return {key: printed[key] for key in KEPT if key in printed} | dict(about)


def spread(values: Sequence[float]) -> str:
    """Mean of the seeds, and the least and the most of them."""
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def grouped(runs: Sequence[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)
    return groups


def mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


def trained_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| data | zeros | method | accuracy % | ever active | bytes | as float32, zstd -19 | float32 |",
        "|---" * 8 + "|",
    ]
    for (data, density, method), these in grouped(runs, "data", "density", "method").items():
        cells = [data, f"{1 - density:.0%}", f"`{method}`" if method != "dense" else method]
        cells.append(spread([run["accuracy"] for run in these]))
        cells.append(f"{mean(these, 'itop_rate'):.1%}" if "itop_rate" in these[0] else "")
        cells.append(f"{mean(these, 'n_bytes'):,.0f}")
        cells.append(f"{mean(these, 'zstd_bytes'):,.0f}" if "zstd_bytes" in these[0] else "")
        cells.append(f"{mean(these, 'fp32_bytes'):,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rates_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"| method | {' | '.join(f'{lr:g}' for lr in RATES)} |", "|---" * (1 + len(RATES)) + "|"]
    for (method,), these in grouped(runs, "method").items():
        cells = [f"{100 * run['accuracy']:.2f}" for run in these]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


def masks_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    sizes = list(dict.fromkeys(run["size"] for run in runs))
    lines = [f"| method | {' | '.join(f'{size}: accuracy %, bytes, kept' for size in sizes)} |", "|---" * 3 + "|"]
    for (method,), these in grouped(runs, "method").items():
        cells = []
        for size in sizes:
            at = [run for run in these if run["size"] == size]
            kept = statistics.mean(run["n_kept"] / run["n_weights"] for run in at)
            cells.append(f"{spread([run['accuracy'] for run in at])}, {mean(at, 'n_bytes'):,.0f}, {kept:.1%}")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


def said(part: Mapping[str, Any]) -> str:
    """How often, and with what, a part was measured."""
    n, machine = len({run["seed"] for run in part["runs"]}), part["machine"]
    seeds = f"mean (least–most) of {n} seeds" if n > 1 else "one seed"
    return f"{seeds}, {part['runs'][0]['epochs']} epochs each; {machine['processor']}, torch {machine['torch']}"


def page(report: Mapping[str, Any]) -> str:
    parts = [
        "# Sparse training, and drop-and-grow on frozen weights",
        "Written by `tools/sparse_table.py`, which says what is measured; [sparse.json](sparse.json) has every run and "
        "the machine. Percent right of the test images, of the file read back.",
    ]
    for name, title in (("trained", "Trained weights"), ("images", "Trained weights, CIFAR-10")):
        if part := report.get(name):
            options = " ".join(COMMON[name])
            best = best_rates(report) if name == "trained" else {}
            rate = f"Rates (`--lr`): {', '.join(f'{method} {lr}' for method, lr in best.items())}. " if best else ""
            parts += [
                f"## {title}",
                f"`smask train --sparse METHOD --density X {options}`, {said(part)}. Layers share the density by ERK. "
                f"{rate}"
                "Ever active: the part of the weights that was in a mask at any time (R_s of Liu et al. 2021); `gap` "
                "trains one layer after the other whole, which costs the time of a denser net. Bytes: the file, "
                "to the bit, beside its weights as float32 with their zeros.",
                "\n".join(trained_rows(part["runs"])),
            ]
    if part := report.get("rates"):
        parts += [
            "Percent right of 10,000 training images of MNIST set aside, of nets with 98 % zeros and of the dense one, "
            f"by learning rate; one seed, {part['epochs']} epochs each.",
            "\n".join(rates_rows(part["runs"])),
        ]
    if part := report.get("masks"):
        parts += [
            "## Masks on frozen weights",
            f"`smask encode --method METHOD --target-size SIZE`, MNIST, 300-100, {said(part)}. `rigl-mask` and "
            "`set-mask` have as many weights from the first step to the last and exchange a part of them; `edge-popup` "
            "has as many and ranks all of them in every step; `auto` ranks weights by scores with the signs of the "
            "seed, and has three levels.",
            "\n".join(masks_rows(part["runs"])),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rates", "trained", "masks", "images", "tables"))
    parser.add_argument("--data", nargs="+", default=[], metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    report: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    if part := "" if arguments.part == "tables" else arguments.part:
        if not arguments.data:
            parser.error("--data is needed to measure")
        epochs = arguments.epochs or EPOCHS[part]
        if part == "rates":
            report[part] = {"machine": facts(), "epochs": epochs, "runs": rates(arguments.data[0], epochs)}
            OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
            return 0
        lrs = best_rates(report) if part == "trained" else {}
        folders = {Path(folder).stem: folder for folder in arguments.data}
        held = report.setdefault(part, {"machine": facts(), "runs": []})
        if held["machine"] != facts():
            parser.error(f"{OUT} has runs of {part} on another machine; begin without them")
        runs = {run["command"]: run for run in held["runs"]}
        for about, options in wanted(part, arguments.data, arguments.seeds, epochs, lrs):
            command = "encode" if part == "masks" else "train"
            line = " ".join(["smask", command, "--data", about["data"], *options])
            if line not in runs:
                runs[line] = measured(part, about, options, folders[about["data"]], arguments.device) | {
                    "command": line
                }
                print(f"{line}: {runs[line]['accuracy']:.4f}", file=sys.stderr, flush=True)
                held["runs"] = list(runs.values())
                OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
