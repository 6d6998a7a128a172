"""The whole state of a search at one step, and who keeps it. Where it is kept is no matter of the search."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..integrity import NAME_OF_DTYPE


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A search after a step: restored into a search of the same settings, it goes on as if nothing had been.

    Attributes:
        step: Steps done.
        numbers: Plain values: position in the batches, schedule, early stopping.
        tensors: Scores, scales, thresholds, masks, other parameters and buffers, optimiser, random generators.
    """

    step: int
    numbers: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def copied(model: nn.Module) -> nn.Module:
    """A copy that state can be written into: buffers that were expanded have an element for each index."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and 0 in buffer.stride():
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    return model


def plain_state(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Parameters and all buffers as a snapshot names them, not copied.

    Buffers of dtypes that no file has are left out, such as complex rotations: they are no part of the state dict,
    which :func:`check_state` sees to, and follow from the module.
    """
    found = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    buffers = {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    return found | {name: buffer for name, buffer in buffers.items() if buffer.dtype in NAME_OF_DTYPE}


def check_state(model: nn.Module) -> None:
    """Refuses a model whose state dict holds what no file does, before time is spent on it.

    Raises:
        ArgumentError: State that is no tensor, or of a dtype that the format does not have.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ArgumentError(
                name, f"state of type {type(value).__name__}", "tensors alone: a file holds nothing else"
            )
        if value.dtype not in NAME_OF_DTYPE:
            want = f"one of {', '.join(NAME_OF_DTYPE.values())}, or a buffer with persistent=False"
            raise ArgumentError(name, str(value.dtype), want)


class Keeper(Protocol):
    """Keeps snapshots; :class:`smask.runs.folder.Checkpoints` is the one with a folder."""

    def last(self, settings: Mapping[str, Any]) -> Snapshot | None:
        """The latest snapshot of a search with these settings, None if it is to begin; refuses other settings."""
        ...

    def due(self) -> bool:
        """Whether it is time to keep one."""
        ...

    def keep(self, snapshot: Snapshot) -> None:
        """Takes a snapshot; it may be changed after the call. What goes wrong must not end the search."""
        ...

    @property
    def place(self) -> str | None:
        """Where the last one that was kept is."""
        ...
