"""What a network is taught by another: inputs without labels, and how far two outputs are from each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..search.data import shifted

TEMPERATURE = 2.0
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
        if inputs.dim() < 1 or not len(inputs):
            raise ArgumentError("calibrate", f"inputs of shape {list(inputs.shape)}", "[N, ...] with N > 0")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise ArgumentError("calibrate", "inputs with NaN or infinity", "finite ones")
        self._inputs = inputs.detach()
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
        return iter(torch.split(self._inputs, N_ALL))

    def some(self, n: int) -> Iterator[Tensor]:
        """So many inputs, or all where there are fewer, evenly from everywhere."""
        return iter(torch.split(self._inputs[:: max(1, len(self) // n)][:n], N_ALL))


def outputs_of(result: object) -> Tensor:
    """The tensor that a network gave, or the field ``logits`` of what it gave.

    Raises:
        ArgumentError: Neither.
    """
    logits = getattr(result, "logits", result)
    if not isinstance(logits, Tensor):
        raise ArgumentError("model", f"outputs of type {type(result).__name__}", "a tensor, or an object with logits")
    return logits


def divergence(got: Tensor, wanted: Tensor) -> Tensor:
    """How far outputs are from those of the teacher: divergence of the distributions plus relative squared error.

    Classes lie along dimension 1, or along the last one of three-dimensional outputs (batch, position, class).

    Args:
        got, wanted: [N, C], [N, positions, C] or [N, C, ...].
    """
    axis = -1 if wanted.dim() in (1, 3) else 1
    log_got, log_wanted = (F.log_softmax(outputs.float() / TEMPERATURE, axis) for outputs in (got, wanted))
    n = wanted.numel() / max(1, wanted.shape[axis])
    apart = F.kl_div(log_got, log_wanted, log_target=True, reduction="sum") / n * TEMPERATURE**2
    scale = wanted.float().var(correction=0).clamp(min=1e-12)
    return apart + (got.float() - wanted.float()).square().mean() / scale
