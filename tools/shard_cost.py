"""Memory of a search on each of several processes, with scores on all of them and spread over them, and seconds a step.

    python tools/shard_cost.py --ranks 2
    python tools/shard_cost.py --ranks 8 --device cuda --arch mlp:4096-16384-16384-1000

Counted are the bytes of all tensors that are alive between two steps and belong to the search: weights, base, scores,
gradients, moments, and scratch; not the batches and not the model of the caller.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

import smask
from smask import architectures, named_nets
from smask.measurement import facts

N_STEPS = 12


def alive() -> dict[int, int]:
    """Bytes of every storage that some tensor is in, by its address."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance would wake what is deprecated
            tensors = [thing, thing.grad] if thing.is_leaf else [thing]
            for tensor in tensors:
                local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                if local is not None and local.device.type != "meta" and local.untyped_storage().nbytes():
                    found[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return found


class Watched:
    """Batches that look at memory and time between two steps."""

    def __init__(self, shape: tuple[int, ...], n: int, n_classes: int, device: str) -> None:
        random = torch.Generator().manual_seed(0)
        self.x = torch.rand((n, *shape), generator=random).to(device)
        self.y = torch.randint(n_classes, (n,), generator=random).to(device)
        self.times: list[float] = []
        self.n_bytes, self.before = 0, dict[int, int]()

    def __len__(self) -> int:
        return N_STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(N_STEPS):
            self.times.append(time.perf_counter())
            if len(self.times) == N_STEPS // 2:
                self.n_bytes = sum(n for place, n in alive().items() if place not in self.before)
            yield self.x, self.y


def work(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    device = "cpu"
    if arguments.device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if arguments.device == "cuda" else "gloo")
    arch = named_nets.architecture(arguments.arch)
    torch.manual_seed(0)
    model = architectures.build(arch)
    n_classes = list(model.parameters())[-1].shape[0]
    batches = Watched(tuple(arch["input"]), arguments.batch_size, n_classes, device)
    batches.before = alive()
    smask.find_masks(
        model, batches, density=0.1, epochs=1, group=dist.group.WORLD, shard=arguments.shard, device=device
    )  # fmt: skip
    gaps = sorted(b - a for a, b in zip(batches.times[1:], batches.times[2:], strict=False))
    own = torch.tensor([float(batches.n_bytes), gaps[len(gaps) // 2]]).to(device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    if dist.get_rank() == 0:
        n_weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        n_bytes = [int(one[0]) for one in every]
        print(
            json.dumps(
                {
                    "n_weights": n_weights, "n_bytes": n_bytes, "bytes_per_weight": max(n_bytes) / n_weights,
                    "seconds_step": float(own[1]),
                }
            )
        )  # fmt: skip
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--arch", default="mlp:1024-4096-4096-10")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    report = {"machine": facts(), "arch": arguments.arch, "batch_size": arguments.batch_size, "ranks": arguments.ranks}
    n = arguments.ranks
    for name, ranks, extra in (("alone", 1, []), ("whole", n, []), ("shard", n, ["--shard"])):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        options = ["--worker", "--arch", arguments.arch, "--batch-size", str(arguments.batch_size)]
        command = [*launch, __file__, *options, "--device", arguments.device, *extra]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
