"""Inputs without labels, on which a network is calibrated or taught."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..search.changes import shifted

# Images are moved by up to this part of their size, and mirrored if they have three colours.
SHIFT = 1 / 8
N_COLOURS = 3
N_ALL = 250


class Inputs:
    """Inputs of a network, drawn at random; images are moved a little, so that few go further.

    Args:
        inputs: [N, ...] as the network takes them: floats, or integers such as tokens.
        seed: Of the order, the moves and the mirror.

    Raises:
        ArgumentError: No inputs, or some that are not finite.
    """

    def __init__(self, inputs: Tensor, *, seed: int) -> None:
        if not isinstance(inputs, Tensor):
            raise ArgumentError("calibrate", f"inputs of type {type(inputs).__name__}", "a tensor [N, ...]")
        if inputs.dim() < 1 or not len(inputs):
            raise ArgumentError("calibrate", f"inputs of shape {list(inputs.shape)}", "[N, ...] with N > 0")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise ArgumentError("calibrate", "inputs with NaN or infinity", "finite ones")
        # Of inference mode a tensor would be of no use where gradients are wanted.
        self._inputs = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
        self._random = torch.Generator().manual_seed(seed % 2**63)

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, n: int) -> Tensor:
        """Some inputs, with replacement."""
        x = self._inputs[torch.randint(len(self), (n,), generator=self._random)]
        if x.dim() != 4 or not x.is_floating_point():
            return x
        shift = int(SHIFT * min(x.shape[2:]))
        if x.shape[1] == N_COLOURS:
            mirrored = torch.rand(len(x), generator=self._random) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return shifted(x, shift, self._random) if shift else x

    def all(self) -> Iterator[Tensor]:
        """Every input once, in order and as it is."""
        return _batches(self._inputs)

    def some(self, n: int) -> Iterator[Tensor]:
        """At most so many inputs, every k-th from the first on, for the largest whole k that gives as many."""
        return _batches(self._inputs[:: max(1, len(self) // n)][:n])


def _batches(inputs: Tensor) -> Iterator[Tensor]:
    """Of nearly the same size: norms go by what is in a batch, and have nothing to go by in one of a single input."""
    return iter(torch.tensor_split(inputs, math.ceil(len(inputs) / N_ALL)))
