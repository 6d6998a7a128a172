"""Which weights a ticket keeps: scores of initial and final weights, the highest are kept.

All are of Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask" (NeurIPS 2019), section 3;
``large-final`` is that of Frankle and Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019). Each has two variants that
keep only weights which end with the sign they began with, or only those which do not (Zhou et al., section 5); where a
layer has too few of them it keeps fewer weights, none of the other kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

# (initial weights, final weights, random generator) to scores, all float32 [n]: those still kept of one layer.
Criterion: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _alike(initial: Tensor, final: Tensor) -> Tensor:
    """Magnitudes of the final weights, scaled to the root mean square of the initial ones.

    Zhou et al. leave their factor open, which makes both comparable; this is our choice.
    """
    return final.abs() * (initial.square().mean() / final.square().mean().clamp_min(1e-30)).sqrt()


PLAIN: Mapping[str, Criterion] = {
    "large-final": lambda initial, final, _: final.abs(),
    "small-final": lambda initial, final, _: -final.abs(),
    "large-init": lambda initial, final, _: initial.abs(),
    "small-init": lambda initial, final, _: -initial.abs(),
    "large-init-large-final": lambda initial, final, _: torch.minimum(initial.abs(), _alike(initial, final)),
    "small-init-small-final": lambda initial, final, _: -torch.maximum(initial.abs(), _alike(initial, final)),
    "magnitude-increase": lambda initial, final, _: final.abs() - initial.abs(),
    "movement": lambda initial, final, _: (final - initial).abs(),
    "random": lambda initial, final, random: torch.rand(initial.shape, generator=random),
}


def _only(criterion: Criterion, sign: int) -> Criterion:
    """The same over weights whose sign stayed (1) or changed (-1)."""

    def restricted(initial: Tensor, final: Tensor, random: torch.Generator) -> Tensor:
        return torch.where(initial.sign() * final.sign() == sign, criterion(initial, final, random), -math.inf)

    return restricted


CRITERIA: Mapping[str, Criterion] = {
    **PLAIN,
    **{f"{name}-same-sign": _only(criterion, 1) for name, criterion in PLAIN.items()},
    **{f"{name}-diff-sign": _only(criterion, -1) for name, criterion in PLAIN.items()},
}


def kept_by(
    criterion: Criterion, mask: Tensor, initial: Tensor, final: Tensor, *, n_kept: int, random: torch.Generator
) -> Tensor:
    """The part of a mask that a criterion keeps.

    Args:
        criterion: One of :data:`CRITERIA`.
        mask: Weights that compete, bool [C, ...].
        initial, final: float32 [C, ...].
        n_kept: At most so many are kept, equal ones in order of index.
        random: For criteria that draw.

    Returns:
        bool [C, ...].
    """
    scores = criterion(initial[mask], final[mask], random)
    order = scores.sort(descending=True, stable=True).indices[:n_kept]
    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    chosen[order] = scores[order] > -math.inf
    return torch.zeros_like(mask).masked_scatter_(mask, chosen)
