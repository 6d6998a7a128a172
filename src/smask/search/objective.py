"""What a search makes small: a loss of outputs and targets, the distance from a teacher, or both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError, ArgumentError
from .distillation import outputs_of, relative_entropy
from .nested import called


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, or a loss mixed with the distance from the outputs of a trained network.

    Attributes:
        loss: (outputs, targets) to a scalar, the mean over the inputs.
        teacher: Sees the inputs that the model sees; never trained. None for the loss alone.
        teacher_weight: Part of the teacher, in (0, 1]; at 1 the loss is not computed, and targets may be None.
        teacher_loss: (outputs, those of the teacher) to a scalar. A search has far fewer bits than its teacher, so that
            it is not asked for the logits themselves, nor for what a temperature brings out of them.
    """

    loss: Callable[[Any, Any], Tensor]
    teacher: nn.Module | None = None
    teacher_weight: float = 0.0
    teacher_loss: Callable[[Tensor, Tensor], Tensor] = relative_entropy

    @classmethod
    def of(
        cls,
        loss: Callable[[Any, Any], Tensor],
        teacher: nn.Module | None,
        weight: float,
        device: torch.device,
        teacher_loss: Callable[[Tensor, Tensor], Tensor] = relative_entropy,
    ) -> Objective:
        """The same with a copy of the teacher on the device, in evaluation mode.

        Raises:
            ArgumentError: A weight out of range.
        """
        if teacher is None:
            return cls(loss)
        if not 0 < weight <= 1:
            raise ArgumentError("teacher_weight", weight, "a number above 0 and at most 1")
        return cls(loss, copy.deepcopy(teacher).to(device).eval().requires_grad_(False), weight, teacher_loss)

    def __call__(self, outputs: Any, x: Any, y: Any) -> Tensor:
        """The value for one batch.

        Raises:
            ArchitectureError: Outputs of the teacher have another shape.
        """
        if self.teacher is None:
            return self.loss(outputs, y)
        with torch.no_grad():
            wanted = outputs_of(called(self.teacher, x))
        got = outputs_of(outputs)
        if got.shape != wanted.shape:
            shapes = f"{list(wanted.shape)}, the model outputs of shape {list(got.shape)}"
            raise ArchitectureError((f"the teacher gives outputs of shape {shapes}",))
        apart = self.teacher_loss(got, wanted)
        if self.teacher_weight == 1:
            return apart
        return self.teacher_weight * apart + (1 - self.teacher_weight) * self.loss(outputs, y)
