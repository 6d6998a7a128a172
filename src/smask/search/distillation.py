"""How far the outputs of a network are from those of its teacher.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2: distributions are
softened by a temperature, and their divergence is multiplied by its square so that gradients stay of one size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError

# Of :func:`divergence`, where the network that learns can become nearly the same as its teacher.
TEMPERATURE = 2.0


def outputs_of(result: object) -> Tensor:
    """The tensor that a network gave, or the field ``logits`` of what it gave.

    Raises:
        ArgumentError: Neither.
    """
    logits = getattr(result, "logits", result)
    if not isinstance(logits, Tensor):
        raise ArgumentError("model", f"outputs of type {type(result).__name__}", "a tensor, or an object with logits")
    return logits


def relative_entropy(got: Tensor, wanted: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of the distributions of classes from those of the teacher, in nats an input or position.

    Classes lie along dimension 1, or along the last one of three-dimensional outputs (batch, position, class).

    Args:
        got, wanted: Logits, [N, C], [N, positions, C] or [N, C, ...].
        temperature: Divides all logits; the divergence is multiplied by its square.
    """
    axis = -1 if wanted.dim() in (1, 3) else 1
    log_got, log_wanted = (F.log_softmax(outputs.float() / temperature, axis) for outputs in (got, wanted))
    n = wanted.numel() / max(1, wanted.shape[axis])
    return F.kl_div(log_got, log_wanted, log_target=True, reduction="sum") / n * temperature**2


def divergence(got: Tensor, wanted: Tensor) -> Tensor:
    """How far outputs are from those of the teacher: relative entropy, softened, plus relative squared error.

    Args:
        got, wanted: As for :func:`relative_entropy`.
    """
    apart = relative_entropy(got, wanted, temperature=TEMPERATURE)
    scale = wanted.float().var(correction=0).clamp(min=1e-12)
    return apart + (got.float() - wanted.float()).square().mean() / scale
