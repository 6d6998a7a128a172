"""Masks over trained weights instead of those of a seed: what a model takes from a checkpoint, how scores begin.

The weights stay frozen and a mask says which of them a task keeps (Mallya et al., "Piggyback: Adapting a Single Network
to Multiple Tasks by Learning to Mask Weights", ECCV 2018; Radiya-Dixit and Wang, "How fine can fine-tuning be?",
AISTATS 2020, section 4). Scores begin in the order of the magnitudes, so that the first masks are those of magnitude
pruning, as in task-agnostic mask training (Liu et al., "Learning to Win Lottery Tickets in BERT Transfer via
Task-agnostic Mask Training", NAACL 2022, section 4), whose loss is the distance from the unmasked model: a teacher with
a weight of one. What differs from these: the density is chosen and falls instead of following from a fixed threshold,
and scales, biases and norms are trained too unless the caller wants none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError, ArgumentError
from ..integrity import NAME_OF_DTYPE
from ..origins import Base, fits, origin_problem

INITIAL = ("magnitude", "random")


@dataclass(frozen=True, eq=False)
class Taken:
    """Tensors of a checkpoint by the names that they have in the model, too.

    Attributes:
        masked: Weights whose masks are searched.
        others: All else that the model has of it.
    """

    masked: Mapping[str, Tensor]
    others: Mapping[str, Tensor]

    @classmethod
    def of(cls, base: Base, model: nn.Module, weights: Collection[str]) -> Taken:
        """Puts into a model what a checkpoint has for it.

        Raises:
            ArchitectureError: It has none of the weights.
            ArgumentError: A weight that is not finite.
        """
        found = _filled(model, base)
        masked = {name: found.pop(name) for name in weights if name in found}
        if not masked:
            raise ArchitectureError(tuple(_difference(base, name, model.get_parameter(name)) for name in weights))
        for name, tensor in masked.items():
            problem = origin_problem(tensor)
            if problem:
                raise ArgumentError(name, problem, f"weights of {base.source} that are finite in binary32")
        return cls(masked, found)


@torch.no_grad()
def _filled(model: nn.Module, base: Base) -> dict[str, Tensor]:
    found = {}
    for name, tensor in model.state_dict().items():  # in the memory of the model
        if tensor.dtype in NAME_OF_DTYPE and fits(tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], base.entry(name)):
            found[name] = base.tensor(name)
            tensor.copy_(found[name])
    return found


def _difference(base: Base, name: str, weight: Tensor) -> str:
    entry = base.entry(name)
    if entry is None:
        return f"{name} is not in the checkpoint"
    return f"{name} is {entry.dtype} {list(entry.shape)} in the checkpoint, {list(weight.shape)} in the net"


def ordered_by_magnitude(drawn: Tensor, weights: Tensor) -> Tensor:
    """The drawn scores, dealt out so that the higher one belongs to the weight of the larger magnitude.

    Args:
        drawn: Scores of which the higher are kept, float32 [C, ...].
        weights: Trained weights, floating [C, ...].
    """
    order = weights.detach().to("cpu", torch.float32).abs().flatten().argsort(stable=True)
    dealt = torch.empty(drawn.numel())
    dealt[order] = drawn.flatten().sort().values
    return dealt.view(drawn.shape)
