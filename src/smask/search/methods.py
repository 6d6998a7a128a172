"""Search methods: one table, one record of functions each; how scores begin, become weights, and get gradients.

What all share is not in the papers: Adam (beside Muon), scores ranked by a sampled threshold instead of a sort, exact
counts once at the end, learned scales and biases unless the caller wants none. ``auto``: :mod:`smask.search.choice`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .allotment import movement
from .exchange import anything, count_exactly, wanted
from .masks import (
    above,
    averaged,
    expected,
    ramped,
    sampled,
    signs_above,
    signs_ramped,
    straight_through,
    straight_through_magnitude,
    through_sigmoid,
    times_probability,
)
from .scores import TEMPERATURE, MaskedWeight

# About a hundred steps of Adam at the default rate lie between the best and the worst score at the start.
INITIAL_WIDTH = 0.1
# The farthest that a score may be below its threshold: twenty steps of Adam at the default rate. A weight that sinks
# farther while the net is young never comes back, though all that it was judged by has changed since. Chosen on a part
# of the training data of MNIST and Fashion-MNIST, as the next. Searches of 5 epochs gain by both, of 20 no more.
REACH, RAMP = 0.02, 0.05
# Steps of scales are this many times as long as those of scores: their best values change whenever masks do. With one
# for each of scores the end is the same, at nearly the cost of masks; with one for four Fashion-MNIST may lose 0.1 %.
PACE_OF_SCALES, N_BETWEEN_SCALES = 4.0, 2


def nothing(layer: MaskedWeight) -> None:
    """All of the layer is trained."""


def balance_thresholds(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """Thresholds of the wanted densities, then what is computed."""
    for name, layer in layers.items():
        layer.refresh(densities[name])
        layer.method.settle(layer)


@torch.no_grad()
def keep_in_reach(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """The same, and no score stays farther below the threshold than :data:`REACH`."""
    balance_thresholds(layers, densities)
    for layer in layers.values():
        scores = torch.mul(layer.latent, layer.sign, out=layer.weight)
        torch.mul(scores.clamp_(min=layer.threshold[0] - REACH * layer.stride), layer.sign, out=layer.latent.data)


@dataclass(frozen=True)
class Method:
    """A way to search masks.

    Attributes:
        name: As on the command line.
        paper: Where it was published, and what is different here.
        initial: (shape, random generator) to the first scores.
        masked: Layer to its masked weights, see :mod:`smask.search.masks`.
        gradient: (layer, gradient of its weight) to the gradient of its latents, see there.
        by_magnitude: Whether weights are ranked by the magnitude of their scores, else by the scores.
        n_coats: Masks on one base; the level of a weight is how many of them it is in.
        flips: Whether a weight takes the sign of its latent instead of that of its base.
        ramp: Width of ramps when a search over the seed begins, in scores, or where signs are searched too in widths
            that reach down to the foot; see :mod:`smask.search.ramps`.
        decays, turns: Whether scores over the seed decay; and are moved by Muon, see :mod:`smask.search.optimizer`.
        falls: Whether the density falls during the search, else it is that of the end all along.
        learns_scale: Whether scales may be trained; else ``settle`` computes them.
        pace_of_scales: Length of a step of scales over one of scores.
        in_steps: Whether distances between scores follow the learning rate: they are so many steps of Adam.
        n_between_scales: Steps of scores from one of scales to the next.
        draws: Whether masks are drawn anew in every step.
        averages: Whether a running mean of the gradients of weights is kept.
        settle: Puts what is computed, not trained, into a layer, at refreshes and when levels are fixed.
        balance: Called at refreshes with the layers and the densities wanted now.
        wish: Layer to how much each of its weights is wanted, float32 [c, ...]; for methods that exchange some.
        worth: Layer to what its sampled weights are worth, float32 [n], by which layers share; else the rule says it.
    """

    name: str
    paper: str
    initial: Callable[[torch.Size, torch.Generator], Tensor]
    masked: Callable[[MaskedWeight], Tensor]
    gradient: Callable[[MaskedWeight, Tensor], Tensor]
    by_magnitude: bool = False
    n_coats: int = 1
    flips: bool = False
    ramp: float = 0.0
    decays: bool = False
    turns: bool = False
    falls: bool = True
    learns_scale: bool = True
    pace_of_scales: float = 1.0
    n_between_scales: int = 1
    in_steps: bool = False
    draws: bool = False
    averages: bool = False
    settle: Callable[[MaskedWeight], None] = nothing
    balance: Callable[[Mapping[str, MaskedWeight], Mapping[str, float]], None] = balance_thresholds
    wish: Callable[[MaskedWeight], Tensor] | None = None
    worth: Callable[[MaskedWeight], Tensor] | None = None

    @property
    def n_planes(self) -> int:
        """Bit planes of a level."""
        return self.n_coats.bit_length()

    @property
    def n_values(self) -> int:
        """What a kept weight may be, beside its base."""
        return self.n_coats * (2 if self.flips else 1)


def positive_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Scores drawn evenly from [0, INITIAL_WIDTH)."""
    return torch.rand(shape, generator=random) * INITIAL_WIDTH


def centred_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Scores drawn evenly from [-INITIAL_WIDTH / 2, INITIAL_WIDTH / 2)."""
    return (torch.rand(shape, generator=random) - 0.5) * INITIAL_WIDTH


def kaiming_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Kaiming-uniform scores of both signs with a = sqrt(5), as the code of Ramanujan et al. draws them."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (2 * torch.rand(shape, generator=random) - 1) * bound


def equal_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Scores that differ by far less than a step of Adam moves them: their order alone is drawn."""
    return torch.rand(shape, generator=random) * 1e-6


def mean_magnitude(layer: MaskedWeight) -> None:
    """Scale: mean magnitude of the latent real weights that are kept, which are half-normal."""
    random = torch.Generator().manual_seed(layer.stream + 1)
    magnitudes = layer.part(torch.randn(layer.shape, generator=random).abs_()).to(layer.base.device) * layer.deviation
    kept = layer.kept != 0 if layer.kept is not None else layer.latent.detach().abs() > layer.threshold[0]
    n_kept, total = float(layer.total(kept.float().sum())), float(layer.total((magnitudes * kept).sum()))
    layer.scale.data.fill_(total / n_kept if n_kept else layer.deviation)


def shift_probabilities(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """Thresholds at which the probabilities of a layer have the wanted mean, by bisection over a sample."""
    for name, layer in layers.items():
        layer.now = density = densities[name]
        sample = layer.sample()
        low, high = float(sample.min()) - 1, float(sample.max()) + 1
        for _ in range(30):
            middle = (low + high) / 2
            over = float(((sample - middle) / TEMPERATURE).sigmoid_().mean()) > density
            low, high = (middle, high) if over else (low, middle)
        layer.threshold = (float(torch.tensor((low + high) / 2)),)


OWN: dict[str, Any] = {
    "pace_of_scales": PACE_OF_SCALES, "n_between_scales": N_BETWEEN_SCALES, "balance": keep_in_reach, "in_steps": True,
}  # fmt: skip
ZHOU = 'Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019, section 5'
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "single",
            "smask: scores and straight-through gradient of Ramanujan et al. (below), ranked with their sign, so that "
            "a weight whose sign is wrong for it is given up, and never farther from the mask than REACH; a density "
            'that falls on the cubic curve of Zhu and Gupta, "To prune, or not to prune" (2017), and holds; on ramps',
            positive_scores, ramped, straight_through, **OWN, ramp=RAMP, decays=True, turns=True,
        ),
        Method(
            "signs",
            "smask: as single, but the sign of a kept weight is searched too, as in that of Koster et al. (below): "
            "weights are ranked by the magnitudes of latents, which pass through zero where they change their sign",
            positive_scores, signs_ramped, straight_through, **(OWN | {"balance": balance_thresholds}),
            by_magnitude=True, flips=True, ramp=1.0, decays=True, turns=True,
        ),
        Method(
            "coats",
            "smask: as single, and kept weights have the levels 1, 2 and 3, as in the three coats of Okoshi et al. "
            "(below), at the density of the end all along",
            positive_scores, above, straight_through, **OWN, n_coats=3, falls=False,
        ),
        Method(
            "threshold",
            'Louizos et al., "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, and Kusupati et '
            'al., "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020: as single; densities '
            "of layers follow from one threshold for all, steered to the density or size wanted (see allotment)",
            positive_scores, above, straight_through, **OWN, worth=movement,
        ),
        Method(
            "edge-popup",
            'Ramanujan et al., "What\'s Hidden in a Randomly Weighted Neural Network?", CVPR 2020, section 3',
            kaiming_scores, above, straight_through_magnitude, by_magnitude=True, falls=False,
        ),
        Method(
            "bernoulli", f"{ZHOU}; here the probabilities are shifted so that their mean is the density wanted",
            centred_scores, sampled, through_sigmoid, draws=True, balance=shift_probabilities,
        ),
        Method(
            "bernoulli-expected", f"{ZHOU}, with the mean mask instead of a drawn one, whose gradient is exact",
            centred_scores, expected, through_sigmoid, balance=shift_probabilities,
        ),
        Method(
            "bernoulli-tutorial", f"{ZHOU}, with the gradient p * g of public tutorials",
            centred_scores, sampled, times_probability, draws=True, balance=shift_probabilities,
        ),
        Method(
            "biprop",
            'Diffenderfer and Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021, algorithm 1: binary '
            "weights times the mean magnitude of the real ones that are kept",
            kaiming_scores, above, straight_through_magnitude, by_magnitude=True, falls=False,
            learns_scale=False, settle=mean_magnitude,
        ),
        Method(
            "signed",
            'Koster et al., "Signing the Supermask: Keep, Hide, Invert", ICLR 2022, section 3; here with a falling '
            "density instead of fixed thresholds",
            positive_scores, signs_above, straight_through, by_magnitude=True, flips=True,
        ),
        Method(
            "multicoat",
            'Okoshi et al., "Multicoated Supermasks Enhance Hidden Networks", ICML 2022, section 3: three coats of '
            "equal numbers of weights",
            kaiming_scores, above, straight_through_magnitude, by_magnitude=True, falls=False, n_coats=3,
        ),
        Method(
            "rigl-mask",
            'Evci et al., "Rigging the Lottery", ICML 2020, section 3, on weights that stay frozen: what goes has the '
            "least score instead of the least magnitude, what comes the mean gradient that most wants it with the sign "
            "it has, for its channel",
            equal_scores, above, averaged, falls=False, averages=True, balance=count_exactly, wish=wanted,
        ),
        Method(
            "set-mask",
            'Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", '
            "Nature Communications 2018, on weights that stay frozen: as rigl-mask, but what comes is drawn",
            equal_scores, above, straight_through, falls=False, balance=count_exactly, wish=anything,
        ),
    )
}  # fmt: skip
