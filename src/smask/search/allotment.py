"""Densities that the search chooses: one threshold for the scores of all layers, from which what each keeps follows.

A penalty of lambda on every weight that is kept (the L0 penalty of Louizos et al., "Learning Sparse Neural Networks
through L0 Regularization", ICLR 2018, section 2) keeps those that are worth more than lambda, wherever they are. Here
lambda is not chosen and hoped to give a density: it is what keeps just the wanted part of all weights, found anew
whenever thresholds are. Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020
(STR), train a threshold for each layer for the same end, and Sanh et al., "Movement Pruning", NeurIPS 2020, section 4,
have one for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ArgumentError
from .scores import MaskedWeight

# Sums of parts of layers are exact up to this part of all weights.
ROUNDING = 1e-9


class Allotment:
    """What layers keep of a density of all together, as scores are now.

    Args:
        worth: Layer name to what its sampled weights are worth, float32 [n], in the same unit for all layers.
        sizes: Weights of each layer that could be kept.
        fixed: Densities that the caller has set; these layers stay outside.
    """

    def __init__(self, worth: Mapping[str, Tensor], sizes: Mapping[str, int], fixed: Mapping[str, float]) -> None:
        self._sizes, self._fixed = sizes, fixed
        self._free = [name for name in sizes if name not in fixed]
        samples = [worth[name].cpu() for name in self._free]
        self._n_sampled = [len(sample) for sample in samples]
        n_sampled = torch.tensor(self._n_sampled, dtype=torch.int64)
        owner = torch.arange(len(samples)).repeat_interleave(n_sampled)
        # Equal ones go in order of layers, so that every process finds the same.
        order = (torch.cat(samples) if samples else torch.empty(0)).sort(descending=True, stable=True).indices
        self._owner = owner[order]
        self._each = torch.tensor([sizes[name] for name in self._free], dtype=torch.float64) / n_sampled
        self._kept = self._each[self._owner].cumsum(0)

    def at(self, density: float) -> dict[str, float]:
        """Density of each layer; a layer may get none, of which its last weight is kept by those who count.

        Raises:
            ArgumentError: Nothing left for layers that the caller has not set.
        """
        n_weights = sum(self._sizes.values())
        left = density * n_weights - sum(part * self._sizes[name] for name, part in self._fixed.items())
        if self._free and left <= 0:
            raise ArgumentError("density", density, "more than the first and last layers keep by themselves")
        n_above = int(torch.searchsorted(self._kept, left + ROUNDING * n_weights, right=True))
        counts = self._owner[:n_above].bincount(minlength=len(self._free)).double()
        if n_above < len(self._owner):  # a sampled weight stands for several, of which some still fit
            n_left = left - (float(self._kept[n_above - 1]) if n_above else 0.0) + ROUNDING * n_weights
            counts[self._owner[n_above]] += max(0, math.floor(n_left)) / float(self._each[self._owner[n_above]])
        shares = zip(self._free, counts.tolist(), self._n_sampled, strict=True)
        found = {name: count / n for name, count, n in shares}
        return {name: self._fixed.get(name, found.get(name, 0.0)) for name in self._sizes}


class Allotments:
    """Those of a search, step by step; what the method calls worth decides.

    Args:
        layers: Of the search.
        fixed: Densities that the caller has set.
    """

    def __init__(self, layers: Mapping[str, MaskedWeight], fixed: Mapping[str, float]) -> None:
        self._layers, self._fixed = layers, fixed
        self._last: tuple[int, Allotment] | None = None

    def at(self, density: float, step: int) -> dict[str, float]:
        """As of :class:`Allotment`, whose errors it raises; between two steps no score changes."""
        if self._last is None or self._last[0] != step:
            worth = {}
            for name, layer in self._layers.items():
                if name not in self._fixed and layer.method.worth:
                    worth[name] = layer.method.worth(layer)
            sizes = {name: layer.n_usable for name, layer in self._layers.items()}
            self._last = step, Allotment(worth, sizes, self._fixed)
        return self._last[1].at(density)


def movement(layer: MaskedWeight) -> Tensor:
    """How far training would have moved each sampled weight along its sign, float32 [n].

    A score counts steps of the optimiser, which are as long in one layer as in the next; a weight is that many times as
    large as its scale says. Movement of weights is what :func:`smask.search.exchange.exchange` compares within a layer.
    """
    scales = layer.scales().abs().mean() * layer.total(layer.base.abs().sum()) / max(1, layer.n_weights)
    return layer.sample() * scales
