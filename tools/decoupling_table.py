"""Decoupled searches beside the ordinary one at equal steps, and a process for each block beside one for all.

    python tools/decoupling_table.py --data ../shared/data/mnist      # keeps docs/decoupling.json, writes the tables
    python tools/decoupling_table.py --data ../shared/data/mnist --only addition
    python tools/decoupling_table.py --only time --turns 7
    python tools/decoupling_table.py --tables                         # only the tables of docs/decoupling.md

Accuracy: every row is `smask encode --decouple WAY` with all other options alike. `last block alone` is a control, made
here: a decoupled search whose guides never learn, so that all blocks but the last stay as they began, with masks of
random scores. What a way is worth is how far it comes from there towards the ordinary search.

Time: the ordinary search, the decoupled one in one process, and in two, in turns, each process with one thread. Seconds
are those of the search, on the clock and of each process on its processor. Where other work keeps the machine busy the
clock says little, and two processes get a larger share of it than one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

import smask
from pages import DOCS, write_table
from searches import encode
from smask import architectures, named_nets
from smask.measurement import facts
from smask.search import guides
from smask.search.accuracy import LabelScore, score
from smask.search.data import Batches, Dataset, load_dataset
from smask.search.tasks import Classification

OUT, PAGE = DOCS / "decoupling.json", DOCS / "decoupling.md"
SUMS = ["--data", "addition:12", "--density", "0.5", "--lr", "3e-3"]
TASKS: dict[str, list[str]] = {
    "addition:12, mlp:24-128-64-12": [*SUMS, "--arch", "mlp:24-128-64-12", "--epochs", "20"],
    "addition:12, mlp:24-512-256-12": [*SUMS, "--arch", "mlp:24-512-256-12", "--epochs", "5"],
    "mnist, mlp:784-300-100-10": ["--data", "mnist", "--arch", "mlp:784-300-100-10", "--epochs", "5"],
    "mnist, mlp:784-256-256-256-256-10": ["--data", "mnist", "--arch", "mlp:784-256-256-256-256-10", "--epochs", "4"],
}
WAYS: dict[str, list[str] | None] = {
    "off": [], "dni": ["--decouple", "dni"], "dni, labels": ["--decouple", "dni", "--dni-labels"],
    "local": ["--decouple", "local"],
    "dni, labels, 2 blocks": ["--decouple", "dni", "--dni-labels", "--blocks", "2"],
    "local, 2 blocks": ["--decouple", "local", "--blocks", "2"],
    "last block alone": None,
}  # fmt: skip
TIMED = ("mlp:784-256-256-256-256-10", "mlp:784-1024-1024-1024-1024-10")
BATCH_SIZE = 128
N_STEPS = 120


def control(options: list[str], seed: int) -> dict[str, Any]:
    """The last block alone: guides start at zero, and stay there."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    dataset = load_dataset(given["--data"])
    rate, guides.RATE = guides.RATE, 0.0
    found = smask.find_masks(
        net(given["--arch"], dataset, seed), Batches(dataset, batch_size=128, seed=seed), decouple="dni",
        density=float(given.get("--density", 0.04)), lr=float(given.get("--lr", 1e-3)), epochs=int(given["--epochs"]),
        seed=seed, loss=Classification(dataset).loss(0.0),
    )  # fmt: skip
    guides.RATE = rate
    scored = score(found, dataset)
    several = {"label_accuracy": scored.label_accuracy} if isinstance(scored, LabelScore) else {}
    return {"command": "made by this tool", "accuracy": scored.accuracy, "loss": scored.loss, **several}


def net(arch: str, dataset: Dataset, seed: int) -> torch.nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(seed)
    shape, n = dataset.input_shape, dataset.n_classes
    return architectures.build(
        named_nets.architecture(arch, input_shape=shape, n_classes=n, mean=mean, std=std)
    )  # fmt: skip


def search(task: str, way: str, seed: int, data: str) -> dict[str, Any]:
    options = [data if option == "mnist" else option for option in TASKS[task]]
    extra = WAYS[way]
    if extra is None:
        return {"seed": seed, **control(options, seed)}
    options = [*options, "--shift", "0", "--seed", str(seed), *extra]
    printed = encode(options)
    said = " ".join("mnist" if option == data else option for option in ["smask encode", *options])
    keys = ("accuracy", "label_accuracy", "loss", "n_bytes", "epochs", "seconds_search")
    return {"command": said, "seed": seed} | {key: printed[key] for key in keys if key in printed}


def work(arguments: argparse.Namespace) -> None:
    """Timed searches by one of two processes, in turns: the first alone, ordinary and decoupled, then both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    random = torch.Generator().manual_seed(0)
    x = torch.rand((N_STEPS * BATCH_SIZE, 784), generator=random)
    dataset = Dataset("random", x, torch.randint(10, (len(x),), generator=random), x[:10], torch.zeros(10).long())
    model, first = net(arguments.arch, dataset, 0), dist.get_rank() == 0
    decoupled: dict[str, Any] = {"decouple": arguments.way, "blocks": 2}
    kinds = {"off": {}, "1": decoupled, "2": {**decoupled, "group": dist.group.WORLD}}
    turns = []
    for turn in range(arguments.turns + 1):
        turns.append({kind: timed(model, dataset, options, first or kind == "2") for kind, options in kinds.items()})
        print(turn, turns[-1] if first else "", file=sys.stderr, flush=True)
    if first:
        print(json.dumps(turns[1:]))  # the first is to get warm
    dist.destroy_process_group()


def timed(model: torch.nn.Module, dataset: Dataset, options: dict[str, Any], takes_part: bool) -> dict[str, Any]:
    dist.barrier()
    began, cpu = time.perf_counter(), seconds_of_processor()
    if takes_part:
        batches = Batches(dataset, batch_size=BATCH_SIZE, seed=0)
        smask.find_masks(model, batches, density=0.1, epochs=1, **options)
    own = torch.tensor([time.perf_counter() - began, seconds_of_processor() - cpu])
    every = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(every, own)
    used = every if "group" in options else every[:1]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"seconds": max(float(one[0]) for one in used), "cpu": [float(one[1]) for one in used], "load": load}


def seconds_of_processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def turns_of(arch: str, way: str, n_turns: int) -> list[dict[str, Any]]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    command = [*launch, "--worker", "--arch", arch, "--way", way, "--turns", str(n_turns)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(report: dict[str, Any]) -> list[str]:
    tasks = [task for task in TASKS if report["runs"].get(task)]
    lines = [f"| | {' | '.join(task.replace(', ', '<br>') for task in tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for way in WAYS:
        cells = []
        for task in tasks:
            runs = report["runs"][task].get(way, [])
            cells.append(" · ".join(f"{run.get('label_accuracy', run['accuracy']):.2%}" for run in runs) or "–")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def time_rows(report: dict[str, Any]) -> list[str]:
    heads = (
        "net", "way", "ms a step: ordinary", "decoupled, 1 process", "2 processes", "2 over 1 process",
        "2 over ordinary", "processor: busier of 2 over 1", "over ordinary", "load",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, turns in report["times"].items():
        times = {kind: [turn[kind]["seconds"] for turn in turns] for kind in turns[0]}
        busy = {kind: [max(turn[kind]["cpu"]) for turn in turns] for kind in turns[0]}
        cells = [f"{1000 * statistics.median(times[kind]) / report['steps']:.2f}" for kind in ("off", "1", "2")]
        cells += [spread(times["2"], times[other]) for other in ("1", "off")]
        cells += [spread(busy["2"], busy[other]) for other in ("1", "off")]
        load = statistics.median(turn[kind]["load"] for turn in turns for kind in turn)
        lines.append(f"| {' | '.join([*name.split('|'), *cells, f'{load:.1f}'])} |")
    return lines


def spread(ones: list[float], others: list[float]) -> str:
    ratios = sorted(one / other for one, other in zip(ones, others, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def write_tables(report: dict[str, Any]) -> None:
    write_table("accuracy", rows(report), page=PAGE)
    write_table("time", time_rows(report), page=PAGE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="DIR", help="MNIST")
    parser.add_argument("--only", default="", metavar="TEXT", help="tasks with this in their name, or time")
    parser.add_argument("--way", default="", help="only this one")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--arch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    report = json.loads(OUT.read_text()) if OUT.exists() else {"runs": {}, "times": {}}
    if arguments.tables:
        write_tables(report)
        return 0
    report |= {"machine": facts(), "steps": N_STEPS, "batch_size": BATCH_SIZE}

    def keep() -> None:
        OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
        write_tables(report)

    for seed in range(arguments.seeds):
        for task in TASKS:
            if arguments.only not in task or ("mnist" in task and not arguments.data):
                continue
            for way in WAYS:
                runs = report["runs"].setdefault(task, {}).setdefault(way, [])
                if arguments.way not in ("", way) or any(run["seed"] == seed for run in runs):
                    continue
                print(task, way, seed, file=sys.stderr, flush=True)
                runs.append(search(task, way, seed, arguments.data))
                keep()
    if arguments.only in ("", "time"):
        for arch in TIMED:
            for way in ("dni", "local"):
                name = f"{arch}|{way}"
                print(name, file=sys.stderr, flush=True)
                report["times"][name] = turns_of(arch, way, arguments.turns)
                keep()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
