"""Steps of a search on a CUDA device, recorded once and replayed.

A step is several hundred small kernels, which take longer to be launched one by one than to run. A CUDA graph is all of
them at once (``torch.cuda.CUDAGraph``): the same kernels in the same memory, so that what a search finds is the same.
What changes from step to step has to lie in memory: inputs, thresholds, the learning rate. What is decided by numbers
of Python, such as new thresholds or levels, happens between replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .objective import Objective

# Steps of a kind that are run before one is recorded: libraries choose and allocate at first.
N_BEFORE = 3
# Kinds that are recorded: masks searched and fixed, on ramps and off, with and without scales; more are inputs of many
# lengths.
N_KINDS = 16

Batch = Sequence[tuple[Any, Any]]
Seen = Callable[[Any, Any], None]
Update = Callable[[Batch, Objective, Seen | None], Tensor]


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded step and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    outputs: Sequence[tuple[Any, Any]]
    loss: Tensor

    def replay(self, batch: Batch, seen: Seen | None) -> Tensor:
        """The step for another batch; its loss."""
        for (x, y), (new_x, new_y) in zip(self.inputs, batch, strict=True):
            x.copy_(new_x)
            y.copy_(new_y)
        self.graph.replay()
        if seen is not None:
            for outputs, y in self.outputs:
                seen(outputs, y)
        return self.loss.clone()


class Recorder:
    """Runs steps, from recordings where there are some.

    Args:
        update: A whole step, see :meth:`smask.search.steps.Search.update`; what it decides by is in ``kind``.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._n_run: Counter[Hashable] = Counter()
        self._made: dict[Hashable, Recording] = {}
        self._refused = False

    def step(self, kind: Hashable, batch: Batch, objective: Objective, seen: Seen | None) -> Tensor:
        """One step; its loss."""
        key = (kind, *[(_form(x), _form(y)) for x, y in batch])
        if key not in self._made and not self._records(key, batch, objective):
            return self._update(batch, objective, seen)
        return self._made[key].replay(batch, seen)

    def forget(self) -> None:
        """Lets go of all recordings: the tensors that they work on are no longer those of the search."""
        self._made.clear()
        self._n_run.clear()

    def _records(self, key: Hashable, batch: Batch, objective: Objective) -> bool:
        """Whether there is a recording now; it takes a few steps of the kind, and tensors as inputs and targets."""
        self._n_run[key] += 1
        tensors = all(isinstance(x, Tensor) and isinstance(y, Tensor) for x, y in batch)
        if self._refused or not tensors or self._n_run[key] <= N_BEFORE or len(self._made) >= N_KINDS:
            return False
        made = next(iter(self._made.values()), None)
        graph, outputs = torch.cuda.CUDAGraph(), list[tuple[Any, Any]]()
        inputs = [(x.clone(), y.clone()) for x, y in batch]

        def seen(out: Any, y: Any) -> None:
            outputs.append((out.detach() if isinstance(out, Tensor) else None, y))

        try:
            # Other threads, such as those that load data, may go on with what a recording forbids.
            pool = made.graph.pool() if made else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                loss = self._update(inputs, objective, seen)
        except RuntimeError:  # a loss or a model that looks at values, say: steps are launched one by one
            self._refused = True
            # A recording that is broken off leaves the generator of the device waiting for its end.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            return False
        self._made[key] = Recording(graph, inputs, outputs, loss)
        return True


def _form(tensor: Any) -> Hashable:
    return (tensor.shape, tensor.stride(), tensor.dtype) if isinstance(tensor, Tensor) else None
