"""Optimisers of weights and how their rate falls: one table each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..search.schedule import cosine


@dataclass(frozen=True)
class Optimizer:
    """A way to move weights along their gradients.

    Attributes:
        make: (parameters, weight decay) to the optimiser; its rate is set before every step.
        lr: The rate where none is said.
    """

    make: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    lr: float


# Both leave a weight of zero with a gradient of zero where it is: decay is in proportion to the weight.
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer(lambda p, decay: torch.optim.Adam(p, weight_decay=decay, fused=True), 1e-3),
    "sgd": Optimizer(lambda p, decay: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=decay, fused=True), 0.1),
}

# Part of the steps that is done to the factor of the rate.
RATES: Mapping[str, Callable[[float], float]] = {"cosine": cosine, "constant": lambda part: 1.0}
