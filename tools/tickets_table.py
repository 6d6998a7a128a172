"""What lottery tickets reach, trained and untrained; keeps it in docs/tickets.json and writes docs/tickets.md.

    python tools/tickets_table.py trained --data ../shared/data/mnist            # 35 minutes on one busy core
    python tools/tickets_table.py untrained --data ../shared/data/mnist          # 11 minutes on one busy core
    python tools/tickets_table.py tables                                         # only the page

`trained`: tickets found in rounds, at once, with other weights under the same mask, and random masks, each
trained for the same steps. `untrained`: accuracy of masks that training chose, on the weights from before it; see also
tools/untrained_images.py. Inputs are 0 to 1, as in the papers, not normalised.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smask import architectures, named_nets
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset, load_dataset
from smask.search.ranks import mixed
from smask.training.criteria import CRITERIA, PLAIN, kept_by
from smask.training.initial import initial_model, origins_of
from smask.training.loop import Trained, train_weights
from smask.training.tickets import find_ticket, layer_ends
from smask.training.treatments import Treatment, treated

DOCS = Path(__file__).parents[1] / "docs"
OUT, PAGE = DOCS / "tickets.json", DOCS / "tickets.md"
# Part kept in a round, rounds, and after how many of them the rivals are measured: 21, 11, 5.5 and 2.3 %.
RATE, N_ROUNDS, POINTS = 0.8, 17, (7, 10, 13, 17)
DENSITIES = (0.7, 0.5, 0.3, 0.2, 0.1)
# The density and the epochs at which all criteria are.
MIDDLE, MIDDLE_EPOCHS = 0.2, 5
# As Frankle and Carbin (2019, figure 2) have them.
LR, BATCH_SIZE = 1.2e-3, 60
COMPARED = ("large-final", "large-final-same-sign")
KINDS = {"rewound": Treatment(), "signed constant": Treatment("constant")}


def net_of(dataset: Dataset, arch: str) -> nn.Module:
    torch.manual_seed(0)
    return architectures.build(
        named_nets.architecture(arch, input_shape=dataset.input_shape, n_classes=dataset.n_classes)
    )


def batches(dataset: Dataset, seed: int) -> Batches:
    return Batches(dataset, batch_size=BATCH_SIZE, seed=seed)


def pruned(
    criterion: str, density: float, initial: Mapping[str, Tensor], final: Mapping[str, Tensor], seed: int,
    convolutions: float | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Masks of one-shot pruning; convolutions may keep another part than matrices."""
    ends = layer_ends(list(initial), density=density)
    if convolutions is not None:
        ends |= {name: convolutions for name, value in initial.items() if value.dim() == 4}
    return {
        name: kept_by(
            CRITERIA[criterion], torch.ones(value.shape, dtype=torch.bool), value, final[name],
            n_kept=max(1, round(ends[name] * value.numel())),
            random=torch.Generator().manual_seed(mixed(seed, index, 1, 0)),
        )
        for index, (name, value) in enumerate(initial.items())
    }  # fmt: skip


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in names}


def trained(dataset: Dataset, seed: int, epochs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy of trained tickets and their rivals at every point, for one seed."""
    net = net_of(dataset, "lenet-300-100")
    origins = origins_of(net)
    start = initial_model(net, origins, seed=seed)
    accuracies: list[float] = []
    masks: dict[int, Mapping[str, Tensor]] = {}
    finals: list[dict[str, Tensor]] = []

    def told(n_round: int, found: Trained) -> None:
        accuracies.append(score(found.model, dataset).accuracy)
        masks[n_round - 1] = found.masks
        finals.extend([weights_of(found.model, origins)] if n_round == 1 else [])
        say(f"seed {seed}, after {n_round - 1} rounds: {accuracies[-1]:.4f}")

    # The net of a round is the trained ticket of the round before.
    find_ticket(
        net, batches(dataset, seed), density=RATE ** (N_ROUNDS + 1), rounds=N_ROUNDS + 1, seed=seed, trained=told,
        epochs=epochs, lr=LR,
    )  # fmt: skip
    initial, rivals = weights_of(start, origins), list[dict[str, Any]]()
    for point in POINTS:
        density = RATE**point
        for name, mask, treatment in (
            ("one-shot", pruned("large-final", density, initial, finals[0], seed), Treatment()),
            ("same mask, reinitialised", masks[point], Treatment("reinit", "random")),
            ("random mask", pruned("random", density, initial, finals[0], seed), Treatment()),
        ):
            begun = treated(start, origins, mask, treatment, seed=seed)
            model = train_weights(begun, batches(dataset, seed), masks=mask, seed=seed, epochs=epochs, lr=LR).model
            rivals.append({"rival": name, "rounds": point, "accuracy": score(model, dataset).accuracy})
            say(f"seed {seed}, {density:.3f} {name}: {rivals[-1]['accuracy']:.4f}")
    return {"seed": seed, "iterative": accuracies, "rivals": rivals}


def untrained(
    dataset: Dataset, arch: str, seed: int, epochs: int, *, criteria: Iterable[str] = CRITERIA
) -> dict[str, Any]:
    """Accuracy before training of what criteria keep, for one seed: at every density those that are compared."""
    net = net_of(dataset, arch)
    origins = origins_of(net)
    start, began = initial_model(net, origins, seed=seed), time.perf_counter()
    dense = train_weights(start, batches(dataset, seed), epochs=epochs, seed=seed, lr=LR, rate="constant").model
    seconds = round(time.perf_counter() - began, 1)
    initial, final = weights_of(start, origins), weights_of(dense, origins)
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for criterion in criteria:
        found[criterion] = {kind: {} for kind in KINDS}
        for density in DENSITIES if criterion in COMPARED else (MIDDLE,):
            masks = pruned(criterion, density, initial, final, seed)
            for kind, treatment in KINDS.items():
                there = all(bool(mask.any()) for mask in masks.values())
                model = treated(start, origins, masks, treatment, seed=seed)
                found[criterion][kind][str(density)] = score(model, dataset).accuracy if there else None
    return {
        "seed": seed, "arch": arch, "epochs": epochs, "dense": score(dense, dataset).accuracy, "seconds": seconds,
        "n_train": len(dataset.x_train), "n_test": len(dataset.x_test), "untrained": found,
    }  # fmt: skip


def spread(values: Iterable[float]) -> str:
    """Mean of the seeds, and the least and the most of them."""
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def trained_rows(runs: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(rival["rival"] for rival in runs[0]["rivals"]))
    lines = [f"| kept | in rounds | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for point in (0, *POINTS):
        cells = [spread(run["iterative"][point] for run in runs)]
        for name in names if point else ():
            rivals = [r for run in runs for r in run["rivals"] if (r["rival"], r["rounds"]) == (name, point)]
            cells.append(spread(rival["accuracy"] for rival in rivals))
        cells += [""] * (1 + len(names) - len(cells))
        lines.append(f"| {RATE**point:.1%}{'' if point else ' (dense)'} | {' | '.join(cells)} |")
    return lines


def mean_of(runs: list[dict[str, Any]], criterion: str, kind: str, density: float) -> str:
    values = [run["untrained"][criterion][kind][str(density)] for run in runs]
    there = [100 * value for value in values if value is not None]
    return f"{statistics.mean(there):.1f}" if len(there) == len(values) else "–"


def untrained_rows(runs: list[dict[str, Any]]) -> list[str]:
    heads = [f"{criterion}, {kind}" for criterion in COMPARED for kind in KINDS]
    lines = [f"| trained for | {' | '.join(['kept', *heads])} |", "|---" * (2 + len(heads)) + "|"]
    for epochs in sorted({run["epochs"] for run in runs}):
        these = [run for run in runs if run["epochs"] == epochs]
        for density in DENSITIES:
            cells = [mean_of(these, criterion, kind, density) for criterion in COMPARED for kind in KINDS]
            lines.append(f"| {epochs} epoch{'s' * (epochs > 1)} | {density:.0%} | {' | '.join(cells)} |")
    return lines


def criteria_rows(runs: list[dict[str, Any]], epochs: int, density: float) -> list[str]:
    these = [run for run in runs if run["epochs"] == epochs]
    variants = ("", "-same-sign", "-diff-sign")
    heads = [f"{variant.strip('-') or 'all'}, {kind}" for variant in variants for kind in KINDS]
    lines = [f"| criterion | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for criterion in PLAIN:
        cells = [mean_of(these, f"{criterion}{variant}", kind, density) for variant in variants for kind in KINDS]
        lines.append(f"| `{criterion}` | {' | '.join(cells)} |")
    return lines


def page(report: dict[str, Any]) -> str:
    parts = [
        "# Lottery tickets",
        "Written by `tools/tickets_table.py`, which says what is measured; [tickets.json](tickets.json) has every run "
        "and the machine. Percent right of the test images, trained nets as they are after their last step. Initial "
        "weights are the base `normal` of the seed. The last layer keeps the root of what the others keep.",
    ]
    if runs := report.get("trained"):
        n, about = len(runs["runs"]), runs["about"]
        parts += [
            "## Trained",
            f"MNIST, 300-100, {about['epochs']} epochs of batches of {BATCH_SIZE} for each training, Adam {LR:g} on "
            f"half a cosine, mean (least–most) of {n} seeds. In rounds: a fifth is pruned in each, by `large-final`, "
            "and weights are rewound (Frankle and Carbin 2019).",
            "\n".join(trained_rows(runs["runs"])),
            "As commands, for one row and one seed (`smask` normalises inputs and moves images if not told otherwise, "
            "so that figures differ a little):",
            "```bash\nsmask ticket --data mnist/ --arch lenet-300-100 --density 0.21 --rounds 7 --shift 0 --epochs "
            f"{about['epochs']} --batch-size {BATCH_SIZE} --lr {LR:g} -o ticket.smask\n"
            f"smask train ticket.smask --data mnist/ --shift 0 --epochs {about['epochs']} --batch-size {BATCH_SIZE} "
            f"--lr {LR:g} -o trained.smask\n```",
        ]
    if runs := report.get("untrained"):
        each = runs["runs"]
        n = len({run["seed"] for run in each})
        parts += [
            "## Untrained",
            f"MNIST, 300-100, Adam at a constant {LR:g}, batches of {BATCH_SIZE}, means of {n} seeds. A dense net is "
            "trained, weights are chosen by a criterion, and the net is scored with these weights as they were at the "
            "beginning, or with signed constants, the others zero (Zhou et al. 2019, section 5). All that was measured "
            "is shown, no density is chosen.",
            "\n".join(untrained_rows(each)),
            f"All criteria after {MIDDLE_EPOCHS} epochs at {MIDDLE:.0%} kept; – where a layer would keep nothing:",
            "\n".join(criteria_rows(each, MIDDLE_EPOCHS, MIDDLE)),
        ]
    parts += ["Convolutional nets of CIFAR-10 are in [untrained-images.md](untrained-images.md)."]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("trained", "untrained", "tables"))
    parser.add_argument("--data", default="", metavar="DATA")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", default="", metavar="A,B", help="trained: 5; untrained: 3,5,10")
    parser.add_argument("--images", type=int, help="use only so many training images")
    parser.add_argument("--test-images", type=int, help="use only so many test images")
    arguments = parser.parse_args()
    report: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    if arguments.part != "tables":
        if not arguments.data:
            parser.error("--data is needed to measure")
        dataset = load_dataset(arguments.data)
        few, tested = slice(0, arguments.images), slice(0, arguments.test_images)
        dataset = replace(
            dataset, x_train=dataset.x_train[few], y_train=dataset.y_train[few], x_test=dataset.x_test[tested],
            y_test=dataset.y_test[tested],
        )  # fmt: skip
        default = {"trained": "5", "untrained": "3,5,10"}[arguments.part]
        lengths = [int(part) for part in (arguments.epochs or default).split(",")]
        about = {"machine": facts(), "epochs": lengths[0], "lr": LR, "batch_size": BATCH_SIZE}
        runs: list[dict[str, Any]] = []
        for seed in range(arguments.seeds):
            for epochs in lengths:
                if arguments.part == "trained":
                    runs.append(trained(dataset, seed, epochs, lambda text: print(text, file=sys.stderr)))
                else:
                    criteria = CRITERIA if epochs == MIDDLE_EPOCHS else COMPARED
                    runs.append(untrained(dataset, "lenet-300-100", seed, epochs, criteria=criteria))
                    print(f"seed {seed}, {epochs} epochs: {runs[-1]['seconds']} s", file=sys.stderr)
                report = json.loads(OUT.read_text()) if OUT.exists() else {}
                report[arguments.part] = {"about": about, "runs": runs}
                OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
