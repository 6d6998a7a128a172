"""Untrained convolutional nets of CIFAR-10 under masks that training chose; docs/untrained-images.json and .md.

    python tools/untrained_images.py --data cifar10.npz --precision bf16 --seeds 0 1     # half an hour a seed, one core
    python tools/untrained_images.py --data cifar10.npz --epochs 10 20 30 --device cuda    # as long as the paper
    python tools/untrained_images.py --tables                                              # only the page

Zhou et al., "Deconstructing Lottery Tickets" (2019), section 5. A dense net is trained; at some epochs weights are
chosen by a criterion at every density of their rounds, and the net is scored on a first part of the test images with
these weights as they were before training, or with signed constants. The best cell of a seed is then scored on the
other test images, by which it was not chosen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset, load_dataset
from smask.training.initial import initial_model, origins_of
from smask.training.loop import train_weights
from smask.training.treatments import treated
from tickets_table import BATCH_SIZE, COMPARED, KINDS, net_of, pruned, weights_of

DOCS = Path(__file__).parents[1] / "docs"
OUT, PAGE = DOCS / "untrained-images.json", DOCS / "untrained-images.md"
# Of Frankle and Carbin (2019, figure 2), as are the parts that go in a round, of convolutions and of matrices.
LRS = {"conv2": 2e-4, "conv4": 3e-4, "conv6": 3e-4}
CONVOLUTIONS = {"conv2": 0.9, "conv4": 0.9, "conv6": 0.85}
MATRICES, ROUNDS = 0.8, range(2, 11)


def measured(
    dataset: Dataset, rest: Dataset, arch: str, seed: int, lengths: Sequence[int], device: str, precision: str
) -> dict[str, Any]:
    """All cells of one seed, and the best of them on the images by which it was not chosen."""
    net = net_of(dataset, arch)
    origins = origins_of(net, spread="glorot")
    start, began, epoch = initial_model(net, origins, seed=seed), time.perf_counter(), itertools.count(1)
    finals: dict[int, dict[str, Tensor]] = {}
    dense: dict[int, float] = {}

    def after(model: nn.Module) -> float:
        now = next(epoch)
        print(f"seed {seed}: epoch {now}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if now in lengths:
            finals[now] = {name: weight.cpu().clone() for name, weight in weights_of(model, origins).items()}
            dense[now] = score(model, dataset, device=device).accuracy
        return 0.0

    train_weights(
        start, Batches(dataset, batch_size=BATCH_SIZE, seed=seed, device=device), epochs=max(lengths), seed=seed,
        lr=LRS[arch], rate="constant", device=device, precision=precision, validate=after,
    )  # fmt: skip
    seconds, initial = round(time.perf_counter() - began, 1), weights_of(start, origins)
    power = {n: MATRICES**n for n in ROUNDS}

    def masked(epochs: int, criterion: str, n_rounds: int, kind: str) -> nn.Module:
        masks = pruned(criterion, power[n_rounds], initial, finals[epochs], seed, CONVOLUTIONS[arch] ** n_rounds)
        return treated(start, origins, masks, KINDS[kind], seed=seed)

    cells = []
    for epochs, criterion, n_rounds, kind in itertools.product(lengths, COMPARED, ROUNDS, KINDS):
        right = score(masked(epochs, criterion, n_rounds, kind), dataset, device=device).accuracy
        cells.append({"epochs": epochs, "criterion": criterion, "rounds": n_rounds, "kind": kind, "accuracy": right})
    best = max(cells, key=lambda cell: float(cell["accuracy"]))
    model = masked(best["epochs"], best["criterion"], best["rounds"], best["kind"])
    return {
        "seed": seed, "arch": arch, "precision": precision, "seconds": seconds, "dense": dense, "cells": cells,
        "n_train": len(dataset.x_train), "n_chosen": len(dataset.x_test), "n_rest": len(rest.x_test),
        "best": best | {"rest": score(model, rest, device=device).accuracy},
    }  # fmt: skip


def rows(run: Mapping[str, Any]) -> list[str]:
    columns = [(criterion, kind) for criterion in COMPARED for kind in KINDS]
    lines = [
        f"| epochs | matrices keep | convolutions | {' | '.join(f'`{c}`, {k}' for c, k in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    found = {(c["epochs"], c["rounds"], c["criterion"], c["kind"]): c["accuracy"] for c in run["cells"]}
    for epochs, n in dict.fromkeys((epochs, n) for epochs, n, _, _ in found):
        cells = [f"{100 * found[epochs, n, *column]:.1f}" for column in columns]
        kept = f"{MATRICES**n:.1%} | {CONVOLUTIONS[run['arch']] ** n:.1%}"
        lines.append(f"| {epochs} | {kept} | {' | '.join(cells)} |")
    return lines


def page(report: Mapping[str, Any]) -> str:
    parts = [
        "# Untrained convolutional nets",
        "Written by `tools/untrained_images.py`, which says what is measured; "
        "[untrained-images.json](untrained-images.json) has every run and the machine. Zhou et al. (2019) report up to "
        "41 % for convolutional nets of CIFAR-10 of which no weight was trained. Adam at a constant rate, batches of "
        f"{BATCH_SIZE}, weights that begin with the spread of Glorot, as theirs do; earlier trials with `conv2` and "
        "`conv4` from that of He, with which the first layer hardly moves, stayed at 31 to 34 %. Trained for a few "
        "epochs here, for some thirty there; readings jump by several points from epoch to epoch and between seeds.",
    ]
    for run in report["runs"]:
        best, dense = run["best"], ", ".join(f"{100 * a:.1f} after {n}" for n, a in run["dense"].items())
        parts += [
            f"`{run['arch']}`, seed {run['seed']}, {run['n_train']:,} training images; percent right of the first "
            f"{run['n_chosen']:,} test images (the dense net: {dense} epochs). Best: `{best['criterion']}`, "
            f"{best['kind']}, {best['epochs']} epochs, {MATRICES ** best['rounds']:.1%}: **{best['rest']:.2%}** of the "
            f"other {run['n_rest']:,} test images, by which it was not chosen.",
            "\n".join(rows(run)),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="NPZ")
    parser.add_argument("--arch", default="conv6", choices=tuple(LRS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 6, 7, 8])
    parser.add_argument("--choose", type=int, default=1000, metavar="N", help="test images that choose (default 1000)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    if not arguments.tables:
        if not arguments.data:
            parser.error("--data is needed to measure")
        whole, n = load_dataset(arguments.data), arguments.choose
        parts = [
            replace(whole, x_test=whole.x_test[part], y_test=whole.y_test[part]) for part in (slice(n), slice(n, None))
        ]
        for seed in arguments.seeds:
            run = measured(*parts, arguments.arch, seed, arguments.epochs, arguments.device, arguments.precision)
            report = json.loads(OUT.read_text()) if OUT.exists() else {"runs": []}
            others = [r for r in report["runs"] if (r["arch"], r["seed"]) != (arguments.arch, seed)]
            report = {"machine": facts(), "runs": sorted([*others, run], key=lambda r: (r["arch"], r["seed"]))}
            OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(json.loads(OUT.read_text())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
