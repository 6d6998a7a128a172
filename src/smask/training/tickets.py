"""Lottery tickets: train from the seed's weights, prune, go back to them, once or round by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import arch_of
from ..errors import ArgumentError, UnsupportedError
from ..recipe import EXTERNAL, Recipe, attach, texts_of
from ..search.densities import check_density
from ..search.ranks import mixed
from ..search.settings import whole_of
from ..search.snapshots import Keeper
from .criteria import CRITERIA, kept_by
from .initial import initial_model, origins_of
from .loop import Trained, train_weights
from .treatments import Treatment, treated

# Of members of a file's meta; those that are as usual (one round, rewound) are left out.
PREFIX = "ticket."


@dataclass(frozen=True, eq=False)
class Ticket:
    """A sparse net before it is trained.

    Attributes:
        model: With its weights at the start; :func:`smask.save` writes it unless its treatment is one that no file
            holds.
        masks: Kept weights, bool [C, ...] by name.
        outside: What pruned weights are held at while the ticket is trained; empty where that is zero.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    outside: Mapping[str, Tensor]


def find_ticket(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    density: float = 0.2,
    last_density: float | None = None,
    rounds: int = 1,
    criterion: str = "large-final",
    treatment: Treatment | None = None,
    base: str = "normal",
    spread: str = "he",
    seed: int = 0,
    meta: Mapping[str, str] | None = None,
    trained: Callable[[int, Trained], None] | None = None,
    checkpoints: Callable[[int], Keeper] | None = None,
    **options: Any,
) -> Ticket:
    """Trains, prunes and rewinds (Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, section 1).

    Round r of n begins with the seed's weights under the mask so far and keeps density^(r/n) of every layer's weights,
    by the criterion among those still kept; n = 1 is one-shot pruning. All rounds see the same batches in one order.

    Args:
        model: Any module; it is copied, not changed. Weights of the kinds that :func:`smask.find_masks` masks begin
            with numbers of the seed, biases beside them with zero, all else as it is.
        batches: As for :func:`smask.find_masks`.
        density: Kept weights over weights of every layer but the last, in (0, 1].
        last_density: Of the last layer; by default the root of ``density``. In small rounds it is then pruned at half
            the rate of the others, as Frankle and Carbin prune it (table 2: 10 % a round beside 20 %).
        rounds: How often it is trained and pruned.
        criterion: One of :data:`smask.training.criteria.CRITERIA`.
        treatment: What kept and pruned weights begin with; rewound and zero by default. In the rounds kept weights are
            always rewound.
        base: ``normal``, ``uniform`` or ``signed``.
        spread: Of the initial weights, one of :data:`smask.training.initial.SPREADS`.
        seed: Of the initial weights and of whatever is drawn, 0 to 2**64 - 1.
        meta: Free text to be written into the file, beside what this adds.
        trained: Called after each training with the round, from 1, and its net.
        checkpoints: Round to what keeps its snapshots; of a resumed search finished rounds are not trained again, and
            the end is the same.
        options: Further arguments of :func:`smask.training.loop.train_weights`.

    Raises:
        ArgumentError: A value out of range, or a criterion that keeps no weight of a layer.
        UnsupportedError: An unknown criterion, base or spread.
        DivergedError, ResumeError, CheckpointError: As :func:`smask.training.loop.train_weights`.
    """
    treatment, texts, seed = treatment or Treatment(), texts_of(meta), whole_of("seed", seed)
    if criterion not in CRITERIA:
        raise UnsupportedError("criterion", criterion, tuple(CRITERIA))
    if checkpoints is not None and not callable(checkpoints):
        raise ArgumentError("checkpoints", checkpoints, "one for each round, such as smask.Rounds(folder)")
    if rounds < 1:
        raise ArgumentError("rounds", rounds, "1 or more")
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", seed, "0 to 2**64 - 1")
    origins = origins_of(model, base=base, spread=spread)
    ends = layer_ends(list(origins), density=density, last=last_density)
    start = initial_model(model, origins, seed=seed)
    initial = {name: start.get_parameter(name).detach() for name in origins}
    outside = initial if treatment.pruned == "initial" else {}
    masks = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in initial.items()}
    settings = {
        "density": density, "last_density": last_density, "rounds": rounds, "criterion": criterion, "base": base,
        "pruned": treatment.pruned,
    }  # fmt: skip
    own = getattr(batches, "generator", None)
    own = own if isinstance(own, torch.Generator) else torch.Generator()
    state = own.get_state()
    for n_done in range(1, rounds + 1):
        own.set_state(state)
        found = train_weights(
            start, batches, masks=masks, outside=outside, seed=seed,
            checkpoints=checkpoints(n_done) if checkpoints else None, settings=settings | {"round": n_done}, **options,
        )  # fmt: skip
        if trained:
            trained(n_done, found)
        for index, (name, mask) in enumerate(masks.items()):
            masks[name] = kept_by(
                CRITERIA[criterion], mask, initial[name], found.model.get_parameter(name).detach(),
                n_kept=max(1, round(ends[name] ** (n_done / rounds) * mask.numel())),
                random=torch.Generator().manual_seed(mixed(seed, index, n_done, 0)),
            )  # fmt: skip
            if not bool(masks[name].any()):
                raise ArgumentError(
                    "criterion", criterion, f"one that keeps a weight of {name!r}; none has such a sign"
                )
    ticket = treated(start, origins, masks, treatment, seed=seed)
    if not treatment.obstacle:
        coded = {
            name: treatment.coded(origin, masks[name], n_streams=len(origins), seed=seed)
            for name, origin in origins.items()
        }
        given = {"criterion": criterion, "rounds": str(rounds), **vars(treatment)}
        usual = {"rounds": "1", **vars(Treatment())}
        said = {f"{PREFIX}{key}": text for key, text in given.items() if text != usual.get(key)}
        held = {name: tensor for name, tensor in coded.items() if tensor is not None}
        attach(ticket, Recipe(seed, held, dict(arch_of(model) or EXTERNAL), {**texts, **said}))
    return Ticket(ticket, masks, outside)


def layer_ends(names: list[str], *, density: float, last: float | None = None) -> dict[str, float]:
    """Density of each layer at the end.

    Raises:
        ArgumentError: One outside of (0, 1].
    """
    check_density("density", density)
    ends = dict.fromkeys(names, density)
    if last is not None:
        ends[names[-1]] = check_density("last_density", last)
    elif len(names) > 1:
        ends[names[-1]] = math.sqrt(density)
    return ends
