"""The whole state of a search at one step, and who keeps it. Where it is kept is no matter of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


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
