"""How much of a net a sparse training looks at: the weights that were in a mask at one time or another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..search.ranks import Ranks
from .steps import Change


class Explored:
    """A change of masks, or none, and which weights were ever in one.

    Args:
        change: What changes them.
        masks: At the beginning.
        ranks: Processes whose masks count together.
    """

    def __init__(self, change: Change, masks: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._change, self._ranks, self.every = change, ranks, change.every
        self._ever = {name: mask.clone() for name, mask in masks.items()}

    def __call__(
        self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor] | None:
        """The new masks."""
        new = self._change(step, weights, gradients, masks)
        for name, mask in (new or {}).items():
            self._ever[name] = self._ever[name].to(mask.device) | mask
        if new is not None and self._ranks.size > 1:
            seen = [ever.float() for ever in self._ever.values()]
            self._ranks.sum(seen)
            self._ever = {name: total > 0 for name, total in zip(self._ever, seen, strict=True)}
        return new

    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """As the change does."""
        self._change.arrange(model, optimizer)

    def settings(self) -> Mapping[str, Any]:
        """Those of the change."""
        return self._change.settings()

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the change, and which weights were ever in a mask."""
        return {**self._change.tensors(), **{f"ever.{name}": ever for name, ever in self._ever.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Takes them over."""
        self._ever = {name: tensors[f"ever.{name}"] for name in self._ever}
        return self._change.restore(tensors)

    def rate(self) -> float:
        """Part of the weights that were ever in a mask."""
        return share(self._ever)


def share(masks: Mapping[str, Tensor]) -> float:
    """Ones over all, of all masks together."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
