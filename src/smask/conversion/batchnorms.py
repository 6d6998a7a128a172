"""Batch norms as a file has them: with the statistics of their rounded layers, and folded where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..search.statistics import fold, names_of
from . import moments
from .scanned import is_coded


class BatchNorms:
    """What one pass over a checkpoint stores of its batch norms.

    Args:
        checkpoint: Where they are.
        layers: Names of weights, each with the path of the norm whose statistics are moved with it.
        folds: Paths of the norms that are folded, with the epsilons of their variances.
        given: Values in place of those of the checkpoint, by name.
        of_base: Whether the base gives a tensor under a name; norms of which it gives all cost nothing as they are.

    Attributes:
        moved: Norms whose statistics were moved.
        folded: Norms whose statistics went into weights and biases.
        folded_names: State-dict names of their parts.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Mapping[str, str], folds: Mapping[str, float],
        given: Mapping[str, Tensor], of_base: Callable[[str, Tensor], bool],
    ) -> None:  # fmt: skip
        self._checkpoint, self._layers, self._folds, self._given = checkpoint, layers, folds, given
        self._of_base = of_base
        self._layer_of = {norm: layer for layer, norm in layers.items()}
        self._names = {entry.name for entry in checkpoint.entries}
        self._norm_of = {name: norm for norm in folds for name in names_of(norm)}
        self._norm_of |= {name: norm for norm in self._layer_of for name in _statistics_of(norm)}
        self._rounded: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self.moved: list[str] = []
        self.folded: list[str] = []
        self.folded_names: set[str] = set()

    def take(self, layer: str, rounded: Tensor) -> None:
        """Remembers a rounded layer until its norm is asked for."""
        if layer in self._layers:
            self._rounded[layer] = rounded

    def value(self, name: str, rounded_of: Callable[[str], Tensor]) -> Tensor | None:
        """What a tensor of a norm becomes; None for all that stay as they are.

        Args:
            name: As in the checkpoint; each is asked for once.
            rounded_of: Rounds a layer that comes after its norm in the checkpoint.
        """
        norm = self._norm_of.pop(name, None)
        if norm is not None:
            found = dict(self._statistics(norm, rounded_of))
            if norm in self._folds:
                found |= self._folded(norm, found)
            for other in (*found, *names_of(norm)):
                self._norm_of.pop(other, None)
            self._values |= found
        return self._values.pop(name, None)

    def _folded(self, norm: str, statistics: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        names = names_of(norm)
        parts = [statistics[name] if name in statistics else self._own(name) for name in names]
        if all(map(self._of_base, names, parts)):
            return
        values = fold(parts, self._folds[norm])
        # A variance below zero, or a factor that its dtype does not hold: such a norm is stored as it is.
        if all(bool(value.isfinite().all()) for value in values):
            self.folded.append(norm)
            self.folded_names |= {*names}
            yield from zip(names, values, strict=True)

    def _own(self, name: str) -> Tensor:
        return self._given[name] if name in self._given else self._checkpoint.read(name).cpu()

    def _statistics(self, norm: str, rounded_of: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Statistics of a batch norm for its rounded layer; none where they do not fit it."""
        layer = self._layer_of.get(norm)
        if layer is None:
            return
        before, after = self._checkpoint.read(layer).cpu(), self._rounded.pop(layer, None)
        if not is_coded(before):
            return
        after = rounded_of(layer) if after is None else after
        shape = (before.shape[0], before.shape[1], -1)
        bias_name = layer.removesuffix("weight") + "bias"
        bias = self._checkpoint.read(bias_name).cpu().double().numpy() if bias_name in self._names else 0.0
        names = _statistics_of(norm)
        mean, variance = (self._checkpoint.read(name).cpu() for name in names)
        found = moments.moved(
            before.float().reshape(shape).numpy(), after.float().reshape(shape).numpy(),
            mean.double().numpy(), variance.double().numpy(), bias=bias,
        )  # fmt: skip
        if found is not None:
            self.moved.append(norm)
            for name, part, old in zip(names, found, (mean, variance), strict=True):
                yield name, torch.from_numpy(part).to(old.dtype)


def _statistics_of(norm: str) -> tuple[str, str]:
    return norm + moments.MEAN, norm + moments.VARIANCE
