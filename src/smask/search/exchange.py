"""Drop-and-grow: a mask gives up some of its ones and takes as many others, so that it stays as sparse as it is.

Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
science", Nature Communications 2018 (SET), and Evci et al., "Rigging the Lottery", ICML 2020 (RigL), exchange trained
weights. On frozen weights, which all are as large as they were drawn, neither magnitude nor an unsigned gradient says
anything: see :func:`exchange`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .scores import MaskedWeight

# Evci et al., section 4: the part of the ones that the first exchange takes; about three quarters of the training have
# exchanges.
FIRST_FRACTION = 0.3
EXCHANGING = 0.75
# On frozen weights, where a new one cannot begin small, few at a time do better: chosen on a part of the training data
# of MNIST. So was the memory of the mean of gradients, about a hundred steps.
N_BETWEEN_FROZEN = 10
FIRST_FRACTION_FROZEN = 0.1
MEMORY = 0.99
# Scores of frozen weights that are out of the mask lie below this, and no step of an optimiser moves them: at that size
# float32 has no number near enough.
ASLEEP = -1e9


def exchanged_fraction(step: int, *, n_steps: int, first: float = FIRST_FRACTION) -> float:
    """Part of the ones that is exchanged: half a cosine from ``first`` to none at ``n_steps`` (RigL, section 3)."""
    return first / 2 * (1 + math.cos(math.pi * step / n_steps)) if step < n_steps else 0.0


def exchanged(kept: Tensor, worth: Tensor, wish: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Which ones go and which come; what goes may come again, as in algorithm 1 of RigL.

    Args:
        kept: The mask, bool [n_weights].
        worth: The least of these ones go, [n_weights].
        wish: The greatest of these, of all that are not in the mask then, come, [n_weights].
        n: How many; no more than there are ones, or places for them.

    Returns:
        Indices of those that go and of those that come, int64 [n] each; among equals any.
    """
    n = min(n, int(kept.sum()))
    dropped = torch.where(kept, worth, math.inf).topk(n, largest=False).indices
    stays = kept.clone()
    stays[dropped] = False
    return dropped, torch.where(stays, -math.inf, wish).topk(n).indices


@torch.no_grad()
def exchange(layer: MaskedWeight, wish: Tensor, fraction: float) -> None:
    """Exchanges a part of a mask on frozen weights.

    What a frozen weight is worth is its score: the way that training would have moved it along its sign since it came,
    in steps of the optimiser. That is the magnitude of the weight that RigL would have there, but with a sign: one that
    training would have turned around is the first to go. New ones begin at zero, as there.

    Args:
        layer: Its scores are changed.
        wish: Of every weight, float32 [c, ...], finite; of those out of the mask it becomes the order in which they
            would come in, were there room for more.
        fraction: Of the ones, in [0, 1].
    """
    scores, wish = layer.whole(layer.scores()).flatten(), layer.whole(wish).flatten()
    kept = scores > ASLEEP
    dropped, grown = exchanged(kept, scores, wish, round(fraction * int(kept.sum())))
    kept[dropped] = False
    asleep = ASLEEP * (3 - wish / wish.abs().max().clamp(min=torch.finfo(wish.dtype).tiny))
    scores = torch.where(kept, scores, asleep)
    scores[grown] = 0.0
    layer.latent.copy_(layer.part(scores.view(layer.shape)) * layer.sign)


def exchange_some(
    layers: Mapping[str, MaskedWeight], wish: Callable[[MaskedWeight], Tensor], *, step: int, n_search: int
) -> None:
    """Exchanges parts of all masks, where a step is one of those that do so.

    Args:
        layers: By name.
        wish: Layer to how much each of its weights is wanted.
        step: Steps done.
        n_search: Steps in which masks may change at all.
    """
    fraction = exchanged_fraction(step, n_steps=round(EXCHANGING * n_search), first=FIRST_FRACTION_FROZEN)
    if fraction and step and step % N_BETWEEN_FROZEN == 0:
        for layer in layers.values():
            layer.seed_draws(step)
            exchange(layer, wish(layer), fraction)


@torch.no_grad()
def count_exactly(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """Masks of just as many ones as the densities say: the least go, those that were wished for most come, at zero."""
    for name, layer in layers.items():
        layer.now, n_kept = densities[name], max(1, round(densities[name] * layer.n_weights))
        layer.threshold = (ASLEEP,)
        scores = layer.whole(layer.scores()).flatten()
        if int((scores > ASLEEP).sum()) == n_kept:
            continue
        order = layer.order().to(scores.device)
        kept, out = order[:n_kept], order[n_kept:]
        scores[kept] = torch.where(scores[kept] > ASLEEP, scores[kept], 0.0)
        scores[out] = torch.where(scores[out] > ASLEEP, 3 * ASLEEP, scores[out])
        layer.latent.copy_(layer.part(scores.view(layer.shape)) * layer.sign)


def wanted(layer: MaskedWeight) -> Tensor:
    """How much a step of every weight along its sign would lower the loss, against others of its channel.

    RigL takes the magnitude of one gradient. A frozen weight has its sign, new ones count in full at once, so that what
    one batch says is too little; and whole channels have larger gradients than others, for reasons that say nothing of
    their weights.
    """
    assert layer.mean_gradient is not None
    gradient = layer.mean_gradient.flatten(1)
    spread = gradient.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
    return -(gradient / spread).view_as(layer.base) * layer.base


def anything(layer: MaskedWeight) -> Tensor:
    """Random numbers, as in SET."""
    return torch.rand(layer.base.shape, generator=layer.random, device=layer.base.device)
