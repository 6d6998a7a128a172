"""Cost of a search step against an ordinary training step and against a step that sorts all scores.

    python tools/step_cost.py
    python tools/step_cost.py --device cuda

All three train the same net on the same batch with the same fused Adam. The sorting step is the reference edge-popup
of Ramanujan et al. (2020): every layer sorts the magnitudes of its scores in every forward pass. Nets are built several
times, since where their memory lies moves a step by some percent. `single` and `coats` are what `auto` is, with one
level of kept weights and with three.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smask import architectures, named_nets
from smask.measurement import facts, interleaved, ratio
from smask.search import initialisation, steps
from smask.search.densities import layer_densities
from smask.search.methods import METHODS
from smask.search.objective import Objective
from smask.search.schedule import Schedule
from smask.search.weights import maskable

NETS = (
    ("lenet-300-100", 128, "single"), ("lenet-300-100", 128, "coats"), ("mlp:784-1200-1200-10", 128, "single"),
    ("mlp:1024-4096-4096-10", 512, "single"), ("mnist-cnn", 64, "single"),
)  # fmt: skip
DENSITY = 0.1


class Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, density: float) -> Tensor:
        order = scores.flatten().sort().indices
        mask = torch.zeros(scores.numel(), device=scores.device)
        mask[order[int((1 - density) * scores.numel()) :]] = 1
        return mask.view(scores.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SortedWeight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", weight.detach().sign() * weight.detach().std())

    def forward(self, scores: Tensor) -> Tensor:
        return self.frozen * Sorted.apply(scores.abs(), DENSITY)


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def sorting_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(module, "weight", SortedWeight(module.weight), unsafe=True)
    return training_step(model, x, y)


def search_step(model: nn.Module, x: Tensor, y: Tensor, *, method: str = "coats") -> Callable[[], object]:
    weights = maskable(model)
    densities = layer_densities({name: one.weight.shape for name, one in weights.items()}, density=DENSITY)
    layers = initialisation.masked_weights(weights, densities, METHODS[method])
    search = steps.Search(model, layers, Schedule.of(10**9, lr=1e-3, hold=0.25, settle=0.1))

    def step() -> None:
        search.step([(x, y)], Objective(F.cross_entropy))
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="of each build")
    arguments = parser.parse_args()
    rows = {}
    for name, batch, method in NETS:
        torch.manual_seed(0)
        arch = named_nets.architecture(name)
        x = torch.randn(batch, *arch["input"], device=arguments.device)
        y = torch.randint(0, 10, (batch,), device=arguments.device)

        kinds = {
            "training": training_step,
            "search": functools.partial(search_step, method=method),
            "sorting": sorting_step,
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.builds):
            works = {kind: make(architectures.build(arch).to(x.device), x, y) for kind, make in kinds.items()}
            # One whole cycle of the threshold refresh a round where time allows, so that its cost is in the figure.
            found = interleaved(works, rounds=arguments.rounds, repeats=steps.N_REFRESH)
            for kind in kinds:
                seconds[kind] += found[kind]
        rows[f"{name}, batch {batch}, {method}"] = {
            "milliseconds": {kind: round(1e3 * statistics.median(values), 3) for kind, values in seconds.items()},
            "search_over_training": ratio(seconds, "search", "training"),
            "search_over_sorting": ratio(seconds, "search", "sorting"),
        }
    print(json.dumps({"machine": facts(), "density": DENSITY, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
