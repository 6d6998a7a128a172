"""Search methods, one table of records; a method says how scores begin and how a layer turns them into weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .scores import MaskedWeight

# About a hundred steps of Adam at the default rate lie between the best and the worst score at the start.
INITIAL_WIDTH = 0.1


@dataclass(frozen=True)
class Method:
    """A way to search masks.

    Attributes:
        name: As on the command line.
        paper: Where it was published.
        initial: (shape, random generator) to the first scores.
        layer: What holds the scores of one weight and writes it.
    """

    name: str
    paper: str
    initial: Callable[[torch.Size, torch.Generator], Tensor]
    layer: type[MaskedWeight]


def uniform_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Scores drawn evenly from [0, INITIAL_WIDTH)."""
    return torch.rand(shape, generator=random) * INITIAL_WIDTH


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
