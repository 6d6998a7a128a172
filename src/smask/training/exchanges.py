"""Drop-and-grow of trained weights: now and then the least of every layer go, and as many others begin at zero.

The fraction falls on half a cosine to nothing at three quarters of the training, for SET too, whose authors keep it: so
Evci et al. compare the two. What goes and comes again in one exchange keeps its value, as in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..search.exchange import EXCHANGING, exchanged, exchanged_fraction
from ..search.ranks import mixed


class Exchanges:
    """Exchanges a part of every mask, layer by layer; numbers of weights stay.

    Args:
        wish: (gradient, random generator) to how much every weight is wanted that is not in a mask.
        every: Steps from one exchange to the next.
        first: Part of the weights that an exchange at step 0 would take.
        n_steps: Of the whole training.
        seed: Of what is drawn; every exchange of a layer has numbers of its own.
    """

    def __init__(
        self, wish: Callable[[Tensor, torch.Generator], Tensor], *, every: int, first: float, n_steps: int, seed: int
    ) -> None:
        self.every, self._wish, self._first, self._seed = every, wish, first, seed
        self._n_steps = round(EXCHANGING * n_steps)

    def __call__(
        self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor] | None:
        """New masks; None at the end of the training, where they stay."""
        fraction = exchanged_fraction(step, n_steps=self._n_steps, first=self._first)
        if not fraction:
            return None
        new = {}
        for index, (name, mask) in enumerate(masks.items()):
            random = torch.Generator().manual_seed(mixed(self._seed, index, step, 1))
            wish, kept = self._wish(gradients[name], random).flatten(), mask.flatten().clone()
            n = round(fraction * int(kept.sum()))
            dropped, grown = exchanged(kept, weights[name].abs().flatten(), wish, n)
            kept[dropped] = False
            kept[grown] = True
            new[name] = kept.view(mask.shape)
        return new

    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """All is in place."""

    def settings(self) -> Mapping[str, Any]:
        """What decides the exchanges."""
        return {"first": self._first, "until": self._n_steps, "seed": self._seed}

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing: an exchange follows from the step."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}


def largest_gradient(gradient: Tensor, random: torch.Generator) -> Tensor:
    """Magnitude of the gradient of one batch (Evci et al., section 3)."""
    return gradient.abs()


def at_random(gradient: Tensor, random: torch.Generator) -> Tensor:
    """Random numbers, the same on every device (Mocanu et al., section "Sparse evolutionary training")."""
    return torch.rand(gradient.shape, generator=random).to(gradient.device)
