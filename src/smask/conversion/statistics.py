"""Statistics of batch norms for a rounded network, measured on inputs.

What a norm remembers comes from the data and the augmentation of a training that nobody has any more. On other inputs
even the given network would measure something else, and to run with that costs accuracy by itself: three points of
the public ResNet-20. So both networks are measured on the same inputs, and only the difference is taken over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# No variance is moved by more than this factor.
LARGEST_MOVE = 20.0


class Statistics:
    """What the norms of a network remember, and what they measure.

    Args:
        given: The network as it was.
        batches: Inputs; large batches, since each is normalised by itself.
    """

    def __init__(self, given: nn.Module, batches: Iterable[Tensor]) -> None:
        self._batches = tuple(batches)
        self._remembered = {
            name: (mean.clone(), variance.clone()) for name, (mean, variance) in _statistics(given).items()
        }
        self._measured = self._measure(given, {})

    @torch.no_grad()
    def follow(self, student: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Moves what the norms of the student remember by what its weights change.

        Args:
            student: Has the norms of the given network.
            weights: Values in place of parameters of the student.
        """
        measured = self._measure(student, weights)
        for name, (mean, variance) in _statistics(student).items():
            (given_mean, given_variance), (before, spread) = self._remembered[name], self._measured[name]
            after, width = measured[name]
            factor = (width / spread).nan_to_num(1.0).clamp(1 / LARGEST_MOVE, LARGEST_MOVE)
            mean.copy_(given_mean + (after - before))
            variance.copy_(given_variance * factor)

    @torch.no_grad()
    def _measure(self, network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        if not self._remembered:
            return {}
        network = copy.deepcopy(network).eval()
        for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
            norm.track_running_stats = True
            norm.reset_running_stats()
            # None stands for the mean over all batches.
            norm.momentum = None
            norm.train()
        for batch in self._batches:
            torch.func.functional_call(network, dict(weights), (batch,))
        return _statistics(network)


def live(network: nn.Module) -> nn.Module:
    """The network with norms that go by each batch and remember nothing of it; everything else as in evaluation."""
    network.eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats = False
    return network


def _statistics(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance that each batch norm remembers, by its name; norms that remember none are left out."""
    return {
        name: (module.running_mean, module.running_var)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
