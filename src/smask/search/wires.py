"""What two neighbouring blocks tell each other: activations forward, gradients backward; in one process or in two.

A gradient comes late: the block before asks for that of an earlier step, so that neither waits for the other at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .ranks import Ranks

# Activations under way at most; whoever is further ahead waits.
N_UNDER_WAY = 4


class Wire(Protocol):
    """Between a block and the next one."""

    def send(self, activations: Tensor, *, answered: bool) -> Callable[[], Tensor] | None:
        """Activations for the next block; what is returned gives its gradient in them, if it will answer."""
        ...

    def take(self, into: Tensor) -> Tensor:
        """The activations of the block before; they may be put into a tensor of their shape and dtype."""
        ...

    def answer(self, gradient: Tensor) -> None:
        """The gradient in what was taken last."""
        ...


class Inside:
    """Both blocks are in this process."""

    def __init__(self) -> None:
        self._forward, self._back = deque[Tensor](), deque[Tensor]()

    def send(self, activations: Tensor, *, answered: bool) -> Callable[[], Tensor] | None:
        self._forward.append(activations)
        return self._back.popleft if answered else None

    def take(self, into: Tensor) -> Tensor:
        return self._forward.popleft()

    def answer(self, gradient: Tensor) -> None:
        self._back.append(gradient)


class Between:
    """The blocks are in two processes, this one and a neighbour.

    Args:
        ranks: Of all processes.
        other: Rank of the neighbour.
    """

    def __init__(self, ranks: Ranks, other: int) -> None:
        self._ranks, self._other = ranks, other
        self._under_way = deque[Callable[[], object]]()

    def send(self, activations: Tensor, *, answered: bool) -> Callable[[], Tensor] | None:
        self._send(activations)
        return self._ranks.receive(torch.empty_like(activations), self._other) if answered else None

    def take(self, into: Tensor) -> Tensor:
        return self._ranks.receive(into, self._other)()

    def answer(self, gradient: Tensor) -> None:
        self._send(gradient)

    def _send(self, tensor: Tensor) -> None:
        if len(self._under_way) == N_UNDER_WAY:
            self._under_way.popleft()()
        tensor = tensor.contiguous()
        arrived = self._ranks.send(tensor, self._other)
        self._under_way.append(lambda: (tensor, arrived()))  # memory is held until then
