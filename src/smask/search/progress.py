"""What a running search tells: losses, accuracy, densities, bytes so far; and when it has to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DivergedError
from .ranks import Ranks


@dataclass(frozen=True)
class Progress:
    """State of a running search, handed to the progress callback every few steps.

    Attributes:
        step, n_steps: Steps done and steps in all.
        epoch, n_epochs: Epoch now running, from 1, and epochs in all.
        loss: Mean since the last report.
        density: Kept weights over weights now.
        n_bytes: Estimated size of the file that the search would give now.
        accuracy: Part of the training inputs since the last report that were right, None for other tasks.
        validation: Latest value of the validation, None without one.
        first_step: Steps done before a resumed search went on; rates count from there.
        clamped: Layers that their density would leave without a weight, or with one, and that keep one.
    """

    step: int
    n_steps: int
    epoch: int
    n_epochs: int
    loss: float
    density: float
    n_bytes: int
    accuracy: float | None = None
    validation: float | None = None
    first_step: int = 0
    clamped: tuple[str, ...] = ()


class Meter:
    """Gathers losses and right answers without waiting for the device; looks at them only now and then.

    Args:
        ranks: Those that share the search.
        whole: A loss of which every rank has its part to the loss; called by all of them. None where all have it.
    """

    def __init__(self, ranks: Ranks, whole: Callable[[Tensor], Tensor] | None = None) -> None:
        self._ranks, self._whole = ranks, whole or (lambda loss: loss)
        self._losses: list[Tensor] = []
        self._n_checked = 0
        self._right: list[Tensor] = []
        self._n_inputs = 0

    def seen(self, outputs: object, targets: object) -> None:
        """Takes the outputs of one step; counts them where they are scores of classes."""
        if (
            isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.dim() == 2 and targets.dim() == 1
            and targets.dtype == torch.int64
        ):  # fmt: skip
            self._right.append((outputs.detach().argmax(1) == targets).sum())
            self._n_inputs += len(targets)

    def add(self, loss: Tensor) -> None:
        """Takes the loss of one step."""
        self._losses.append(loss)

    def check(self, step: int, place: str | None) -> None:
        """Looks at the losses up to this step, each once.

        Raises:
            DivergedError: One is not finite; it names the first such step.
        """
        if self._n_checked == len(self._losses):
            return
        losses = self._whole(torch.stack(self._losses[self._n_checked :]))
        self._losses[self._n_checked :] = [*losses]
        self._n_checked = len(self._losses)
        bad = losses.isfinite().logical_not_().nonzero()
        if len(bad):
            first = int(bad[0])
            raise DivergedError(step - len(losses) + first + 1, float(losses[first]), place)

    def read(self) -> tuple[float, float | None]:
        """Mean loss and accuracy since the last reading, and begins anew."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else float("nan")
        accuracy = None
        if self._ranks.size > 1 or self._n_inputs:
            device = self._losses[0].device
            n_right = torch.stack(self._right).sum() if self._right else torch.zeros((), dtype=torch.int64).to(device)
            counted = torch.stack([n_right, torch.full_like(n_right, self._n_inputs)])
            self._ranks.sum([counted])
            n_right, n_inputs = counted.tolist()
            accuracy = n_right / n_inputs if n_inputs else None
        self._losses, self._right, self._n_inputs, self._n_checked = [], [], 0, 0
        return loss, accuracy
