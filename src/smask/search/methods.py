"""Search methods, one table of records; a method says how latents begin and how a layer turns them into weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .scores import MaskedWeight


@dataclass(frozen=True)
class Method:
    """A way to search masks.

    Attributes:
        name: As on the command line.
        paper: Where it was published.
        initial: (signs, random generator) to the first latents.
        layer: Parametrisation of one layer.
    """

    name: str
    paper: str
    initial: Callable[[Tensor, torch.Generator], Tensor]
    layer: type[MaskedWeight]


def uniform_scores(sign: Tensor, random: torch.Generator) -> Tensor:
    """Latents of scores drawn evenly from [0, INITIAL_WIDTH)."""
    scores = torch.rand(sign.shape, generator=random) * INITIAL_WIDTH
    return scores.to(sign.device) * sign


# About a hundred steps of Adam at the default rate lie between the best and the worst score at the start.
INITIAL_WIDTH = 0.1

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "edge-popup",
            'Ramanujan et al., "What\'s Hidden in a Randomly Weighted Neural Network?", CVPR 2020; here with a '
            "threshold instead of a sort, and a density that falls during the search",
            uniform_scores,
            MaskedWeight,
        ),
    )
}
