"""Cost of a search step against an ordinary training step and against a step that sorts all scores.

    python tools/step_cost.py
    python tools/step_cost.py --device cuda --precision bf16 --net conv6:128:single --net resnet18:128:single

All three train the same net on the same batch, with fused Adam but for scores that a search moves by Muon. The sorting
step is the reference edge-popup of Ramanujan et al. (2020): every layer sorts the magnitudes of its scores in every
forward pass. Where a search has convolutions as products (`smask.search.unfolding`), `unfolding` is training with them.
Nets are built several times, since where their memory lies moves a step by some percent. `coats` is
`auto` in nets of few layers, `signs` in deep ones with batch norms, `single` in others.
"""

from __future__ import annotations

import argparse
import functools
import gc
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
from smask.search.precision import DTYPES, Precision
from smask.search.schedule import Schedule
from smask.search.unfolding import Unfolding
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


def training_step(
    model: nn.Module, x: Tensor, y: Tensor, *, precision: str, unfolds: bool = False
) -> Callable[[], object]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    ours = Precision(precision, x.device)

    def step() -> None:
        plain = torch.autocast(x.device.type, DTYPES[precision], enabled=precision != "fp32")
        with ours.passes() if unfolds else plain:
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def sorting_step(model: nn.Module, x: Tensor, y: Tensor, *, precision: str) -> Callable[[], object]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(module, "weight", SortedWeight(module.weight), unsafe=True)
    return training_step(model, x, y, precision=precision)


def search_step(
    model: nn.Module, x: Tensor, y: Tensor, *, precision: str, method: str = "coats"
) -> Callable[[], object]:
    weights = maskable(model)
    densities = layer_densities({name: one.weight.shape for name, one in weights.items()}, density=DENSITY)
    layers = initialisation.masked_weights(weights, densities, METHODS[method])
    search = steps.Search(
        model, layers, Schedule.of(10**9, lr=1e-3, hold=0.25, settle=0.1), precision=Precision(precision, x.device),
        record=True,
    )  # fmt: skip

    def step() -> None:
        search.step([(x, y)], Objective(F.cross_entropy))
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def peak_bytes(make: Callable[[], Callable[[], object]]) -> int:
    """Most memory that a net and its steps hold on the CUDA device, what other nets hold left out."""
    gc.collect()  # what is in cycles would be given back while the next is measured
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make()
    for _ in range(2 * steps.N_REFRESH):
        step()
    return torch.cuda.max_memory_allocated() - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="of each build")
    parser.add_argument("--precision", default="fp32", help="of passes, fp32 or bf16 (default %(default)s)")
    parser.add_argument("--net", action="append", metavar="NAME:BATCH:METHOD", help="instead of those of the table")
    arguments = parser.parse_args()
    rows = {}
    given = [text.rsplit(":", 2) for text in arguments.net or ()]
    for name, batch, method in [(name, int(batch), method) for name, batch, method in given] or NETS:
        torch.manual_seed(0)
        arch = named_nets.architecture(name)
        x = torch.randn(batch, *arch["input"], device=arguments.device)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x  # as the command line has them
        y = torch.randint(0, 10, (batch,), device=arguments.device)
        precision = arguments.precision

        kinds = {
            "training": training_step,
            "search": functools.partial(search_step, method=method),
            "sorting": sorting_step,
        }
        if Unfolding.helps(x.device, DTYPES[precision]):
            kinds["unfolding"] = functools.partial(training_step, unfolds=True)

        def made(kind: str, kinds=kinds, arch=arch, x=x, y=y, precision=precision) -> Callable[[], object]:
            return kinds[kind](architectures.build(arch).to(x.device), x, y, precision=precision)

        peaks = {kind: peak_bytes(functools.partial(made, kind)) for kind in kinds} if x.is_cuda else {}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.builds):
            works = {kind: made(kind) for kind in kinds}
            # One whole cycle of the threshold refresh a round where time allows, so that its cost is in the figure.
            found = interleaved(works, rounds=arguments.rounds, repeats=steps.N_REFRESH)
            for kind in kinds:
                seconds[kind] += found[kind]
            works.clear()
        rows[f"{name}, batch {batch}, {method}"] = {
            "milliseconds": {kind: round(1e3 * statistics.median(values), 3) for kind, values in seconds.items()},
            "search_over_training": ratio(seconds, "search", "training"),
            "search_over_sorting": ratio(seconds, "search", "sorting"),
            **({"unfolding_over_training": ratio(seconds, "unfolding", "training")} if "unfolding" in kinds else {}),
            **({"peak_bytes": peaks} if peaks else {}),
        }
    result = {"machine": facts(), "density": DENSITY, "precision": arguments.precision, "rows": rows}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
