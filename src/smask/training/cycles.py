"""Grow-and-prune: one partition of the layers after another is trained whole and pruned again, the others stay sparse.

Ma et al., "Effective Model Sparsification by Scheduled Grow-and-Prune Methods", ICLR 2022, section 3: C-GaP, in turn,
and P-GaP, where every process grows another partition of a copy of the net, and of each partition the process that
trained it whole has the say. Here what is in no partition is then the mean of all processes. After the last phase the
net is trained sparse, by all processes alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..search.ranks import Ranks

# Part of the training in which partitions grow.
GROWING = 0.75


class Cycles:
    """Phases in which a partition is whole.

    Args:
        partitions: Names of the weights of each; of several processes as many as these are.
        counts: Weights of each name that are kept where it is pruned.
        masks: At the beginning, where nothing is grown, bool [C, ...] by name.
        rounds: How often every partition is grown.
        n_steps: Of the whole training.
        ranks: Processes that grow one partition each; one process grows them in turn.

    Attributes:
        every: Steps of a phase.
        sparse: The masks without what is grown, as of the last time that it was pruned.
    """

    def __init__(
        self,
        partitions: Sequence[Sequence[str]],
        counts: Mapping[str, int],
        masks: Mapping[str, Tensor],
        *,
        rounds: int,
        n_steps: int,
        ranks: Ranks,
    ) -> None:
        self._partitions, self._counts, self._ranks, self._rounds = partitions, dict(counts), ranks, rounds
        self._n_phases = rounds * (len(partitions) if ranks.size == 1 else 1)
        self.every = int(GROWING * n_steps) // self._n_phases
        self.sparse, self._phase = dict(masks), 0

    def grown(self, phase: int) -> frozenset[str]:
        """Weights that are whole in a phase, from 0, on this process."""
        if phase >= self._n_phases:
            return frozenset()
        alone = self._ranks.size == 1
        return frozenset(self._partitions[phase % len(self._partitions) if alone else self._ranks.rank])

    def masks(self, phase: int) -> dict[str, Tensor]:
        """Masks in a phase."""
        whole = self.grown(phase)
        return {name: torch.ones_like(mask) if name in whole else mask for name, mask in self.sparse.items()}

    def __call__(
        self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor] | None:
        """Prunes what was grown, by magnitude, and grows what is next; None after the last phase."""
        phase = step // self.every
        if phase > self._n_phases:
            return None
        self._phase = phase
        pruned = self.grown(phase - 1)
        self.sparse = {
            name: largest(weights[name], self._counts[name]) if name in pruned else mask.to(weights[name].device)
            for name, mask in self.sparse.items()
        }
        if self._ranks.size > 1:
            said = [mask.float() * (name in pruned) for name, mask in self.sparse.items()]
            self._ranks.sum(said)
            self.sparse = {name: mask > 0 for name, mask in zip(self.sparse, said, strict=True)}
        return self.masks(phase)

    @torch.no_grad()
    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """What is grown again at once begins at zero where it was pruned; processes come to one net."""
        own = frozenset(self._partitions[self._ranks.rank]) if self._ranks.size > 1 else frozenset(self.sparse)
        weights = {name: model.get_parameter(name) for name in self.sparse}
        for name, weight in weights.items():
            weight.mul_(self.sparse[name] if name in own else 0)
        if self._ranks.size == 1:
            return
        taken = {id(weight) for weight in weights.values()}
        others = [p.data for p in model.parameters() if id(p) not in taken]
        others += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._ranks.sum([*(weight.data for weight in weights.values()), *others])
        for tensor in others:
            tensor.div_(self._ranks.size)
        for moments in optimizer.state.values():  # each process has its own, of another net
            for moment in moments.values():
                if isinstance(moment, Tensor) and moment.dim():
                    moment.zero_()

    def settings(self) -> Mapping[str, Any]:
        """What decides the phases."""
        return {
            "partitions": [list(names) for names in self._partitions],
            "rounds": self._rounds,
            "counts": self._counts,
        }

    def tensors(self) -> Mapping[str, Tensor]:
        """Masks where nothing is grown, the same on all processes, and the phase."""
        phase = {"phase": torch.tensor(self._phase)}
        return phase | {f"sparse.{name}": mask for name, mask in self.sparse.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Takes them over; the masks of this process."""
        self._phase = int(tensors["phase"])
        self.sparse = {name: tensors[f"sparse.{name}"] for name in self.sparse}
        return self.masks(self._phase)


def partitions_of(names: Sequence[str], n: int) -> list[list[str]]:
    """Neighbouring layers in n groups, of about as many each."""
    return [list(names[len(names) * i // n : len(names) * (i + 1) // n]) for i in range(n)]


def largest(weight: Tensor, n: int) -> Tensor:
    """A mask of the n weights of largest magnitude, bool [C, ...]."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[weight.abs().flatten().topk(n).indices] = True
    return mask.view(weight.shape)
