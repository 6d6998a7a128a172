"""Sparse training: a net that is sparse from its first step to its last, its masks fixed or changing on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import integrity
from ..errors import ArgumentError, UnsupportedError
from ..search.densities import layer_densities
from ..search.exchange import FIRST_FRACTION
from ..search.identity import n_batches_of
from ..search.ranks import Ranks, mixed
from .cycles import Cycles, partitions_of
from .exchanges import Exchanges, at_random, largest_gradient
from .exploration import Explored, share
from .initial import initial_model, origins_of
from .loop import train_weights
from .steps import Change

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Steps between two exchanges of long trainings (Evci et al., section 4); in short ones about so many exchanges, but no
# more than one in ten steps, since weights do not move in these.
N_BETWEEN, N_EXCHANGES, N_BETWEEN_LEAST = 100, 40, 10
# Partitions that grow in turn, or fewer where there are fewer layers.
N_PARTITIONS = 4


@dataclass(frozen=True)
class Plan:
    """What a method may want to know.

    Attributes:
        masks: At the beginning, bool [C, ...] by name.
        counts: Kept weights of each.
        n_steps: Of the training.
        every: Steps between two exchanges.
        fraction: Part that the first exchange would take.
        rounds: How often a partition grows.
        seed: Of what is drawn.
        ranks: Processes that take part.
    """

    masks: Mapping[str, Tensor]
    counts: Mapping[str, int]
    n_steps: int
    every: int
    fraction: float
    rounds: int
    seed: int
    ranks: Ranks

    def exchanges(self, wish: Callable[[Tensor, torch.Generator], Tensor]) -> Exchanges:
        """Drop-and-grow with these numbers."""
        return Exchanges(wish, every=self.every, first=self.fraction, n_steps=self.n_steps, seed=self.seed)

    def cycles(self) -> Cycles:
        """Grow-and-prune with these numbers."""
        n, size = len(self.masks), self.ranks.size
        if size > n:
            raise ArgumentError("group", f"{size} processes", f"at most one for each of the {n} masked layers")
        partitions = partitions_of(list(self.masks), size if size > 1 else min(N_PARTITIONS, n))
        cycles = Cycles(partitions, self.counts, self.masks, rounds=self.rounds, n_steps=self.n_steps, ranks=self.ranks)
        if cycles.every < 2:
            raise ArgumentError("rounds", self.rounds, f"fewer, {self.n_steps} steps have no room for so many phases")
        return cycles


@dataclass(frozen=True)
class Method:
    """A way to train a sparse net.

    Attributes:
        name: As on the command line.
        paper: Where it was published.
        change: What changes masks, if anything does.
        numbers: Arguments of :func:`train_sparse` that it alone looks at.
        parallel: Whether several processes can share a training.
    """

    name: str
    paper: str
    change: Callable[[Plan], Change | None]
    numbers: tuple[str, ...] = ()
    parallel: bool = False


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "rigl", 'Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3',
            lambda plan: plan.exchanges(largest_gradient), ("every", "fraction"),
        ),
        Method(
            "set",
            'Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity '
            'inspired by network science", Nature Communications 2018',
            lambda plan: plan.exchanges(at_random), ("every", "fraction"),
        ),
        Method(
            "gap",
            'Ma et al., "Effective Model Sparsification by Scheduled Grow-and-Prune Methods", ICLR 2022, section 3',
            Plan.cycles, ("rounds",), parallel=True,
        ),
        Method("static", "the rival: a random mask that stays", lambda plan: None),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse net, trained.

    Attributes:
        model: On the CPU, in evaluation mode; :func:`smask.save` writes it to the bit.
        masks: As they were at the end, bool [C, ...] by name, on the CPU.
        explored: Part of the weights that were in a mask at any time: the in-time over-parameterisation rate R_s of Liu
            et al., "Do We Actually Need Dense Over-Parameterization?", ICML 2021, section 3.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    explored: float

    @property
    def density(self) -> float:
        """Part of the weights that is in a mask."""
        return share(self.masks)


def train_sparse(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    method: str = "rigl",
    density: float = 0.1,
    density_rule: str = "erk",
    first_density: float | None = None,
    last_density: float | None = None,
    every: int | None = None,
    fraction: float = FIRST_FRACTION,
    rounds: int = 2,
    epochs: int = 20,
    seed: int = 0,
    group: ProcessGroup | None = None,
    **options: Any,
) -> Sparse:
    """Trains a sparse net from random weights of the seed.

    Weights begin normal, with the deviation of He et al. (2015) for the inputs that the masks leave at the beginning.

    Args:
        model: Any module; it is copied, not changed. Its masked weights are those that :func:`smask.find_masks` masks.
        batches: As for :func:`smask.find_masks`.
        method: One of :data:`METHODS`.
        density: Kept weights over all weights of masked layers at the end, in (0, 1]; but for what ``gap`` grows, all
            along.
        density_rule, first_density, last_density: As for :func:`smask.find_masks`.
        every: Steps from one exchange to the next, 2 or more; by default 100, less where a training is short.
        fraction: Part of the weights that an exchange at the beginning takes, in [0, 1].
        rounds: How often ``gap`` grows every partition of layers.
        epochs: Passes over the batches.
        seed: Of weights, masks and exchanges, 0 to 2**64 - 1.
        group: Processes, each of which grows another partition of layers (``gap`` alone), all called with the same
            arguments; None for this process alone. Checkpoints are kept by the first, when all have the same weights.
        options: Further arguments of :func:`smask.training.loop.train_weights`.

    Raises:
        ArgumentError: A value out of range, or more processes than layers.
        UnsupportedError: An unknown method or density rule, or several processes for a method that has no use of them.
        RankError: Processes no longer agree, or one has ended.
        DivergedError, ResumeError, CheckpointError: As :func:`smask.training.loop.train_weights`.
    """
    if method not in METHODS:
        raise UnsupportedError("sparse method", method, tuple(METHODS))
    ranks = Ranks(group, torch.device(options.get("device", "cpu")))
    if ranks.size > 1 and not METHODS[method].parallel:
        raise UnsupportedError(
            "sparse method of several processes", method, tuple(m for m in METHODS if METHODS[m].parallel)
        )
    check_numbers(fraction=fraction, rounds=rounds, epochs=epochs, **({} if every is None else {"every": every}))
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", seed, "0 to 2**64 - 1")
    origins = origins_of(model)
    densities = layer_densities(
        {name: origin.shape for name, origin in origins.items()},
        density=density, rule=density_rule, first=first_density, last=last_density,
    )  # fmt: skip
    counts = {name: max(1, round(densities[name] * math.prod(origin.shape))) for name, origin in origins.items()}
    masks = {
        name: random_mask(origin.shape, counts[name], seed=mixed(seed, index, 0, 2))
        for index, (name, origin) in enumerate(origins.items())
    }
    n_steps = epochs * n_batches_of(batches)
    every = every or max(N_BETWEEN_LEAST, min(N_BETWEEN, n_steps // N_EXCHANGES))
    change = METHODS[method].change(Plan(masks, counts, n_steps, every, fraction, rounds, seed, ranks))
    if isinstance(change, Cycles):
        masks = change.masks(0)
    start = initial_model(model, origins, seed=seed)
    if ranks.size > 1:
        ranks.check_same(model=integrity.digest(start.state_dict()))
    with torch.no_grad():
        for name, mask in masks.items():
            start.get_parameter(name).mul_(math.sqrt(mask.numel() / int(mask.sum())))
    watched = Explored(change, masks, ranks) if change else None
    own = {"sparse": method, "density": density, "density_rule": density_rule, "counts": counts}
    trained = train_weights(
        start, batches, masks=masks, change=watched, epochs=epochs, seed=seed, group=group, settings=own, **options
    )
    return Sparse(trained.model, trained.masks, watched.rate() if watched else share(trained.masks))


def random_mask(shape: tuple[int, ...], n: int, *, seed: int) -> Tensor:
    """A mask of n ones, bool [C, ...] on the CPU."""
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))[:n]] = True
    return mask.view(shape)


def check_numbers(**values: float) -> None:
    """Refuses numbers of exchanges and cycles, each by a name that ends with that of the argument.

    Raises:
        ArgumentError: One is out of range.
    """
    for name, value in values.items():
        if name.endswith("fraction"):
            if not 0 <= value <= 1:
                raise ArgumentError(name, value, "a number from 0 to 1")
        elif value < (least := 2 if name.endswith("every") else 1):
            raise ArgumentError(name, value, f"{least} or more")
