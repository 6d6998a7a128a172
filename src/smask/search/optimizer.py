"""What updates all that a search trains: Adam, which takes longer steps with scales where the method wants that."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .scores import MaskedWeight


def optimizer_of(others: Iterable[nn.Parameter], layers: Iterable[MaskedWeight], *, lr: float) -> torch.optim.Optimizer:
    """Fused Adam over what requires a gradient; the entry ``pace`` of a group is a factor of its rate."""
    layers = [*layers]
    groups = (
        ([*others, *(layer.latent for layer in layers)], 1.0),
        ([layer.scale for layer in layers], layers[0].method.pace_of_scales),
    )
    return torch.optim.Adam(
        [{"params": [p for p in some if p.requires_grad], "pace": pace} for some, pace in groups], lr=lr, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["pace"]


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As ``zero_grad``, whose note for the profiler takes a hundredth of a step of a small net."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which its state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
