"""Batches of all epochs in a row, from any point on: an epoch's order is drawn again, its first batches skipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .nested import pair_of


class Order:
    """Goes through the batches epoch by epoch and knows where it is.

    Random numbers that decide the order have to come from torch's own generator or from the attribute ``generator``
    of the batches, as those of :class:`torch.utils.data.DataLoader` and :class:`smask.search.data.Batches` do; both
    are restored. What other generators draw must follow from the epoch alone. Batches with a method ``set_progress``
    are told the part of the epochs that is done before each, 0 at first.

    Args:
        batches: Iterable once an epoch.
        n_epochs: How often.
        device: Of the search; the generator of a CUDA device is restored too.
        n_batches: Batches of an epoch that are used at least.
        n_together: Batches that are one step; those of an epoch that are left over are not used.
    """

    def __init__(
        self, batches: Iterable[tuple[Any, Any]], n_epochs: int, device: torch.device, *, n_batches: int,
        n_together: int = 1,
    ) -> None:  # fmt: skip
        self._batches, self._n_epochs, self._device, self._n_together = batches, n_epochs, device, n_together
        self._n_batches = n_batches
        self.epoch, self.taken = 0, 0
        self._start: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[list[tuple[Any, Any]]]:
        """Batches that are one step together.

        Raises:
            ArgumentError: An epoch of fewer batches than there should be, or something else than pairs.
        """
        while self.epoch < self._n_epochs:
            if self._resumed is not None:
                self._set_generators(self._start)
            else:
                self._start = self._generators()
            if hasattr(self._batches, "set_progress"):
                self._batches.set_progress(self.epoch / self._n_epochs)
            iterator = iter(self._batches)
            if self._resumed is not None:
                for _ in range(self.taken):
                    next(iterator, None)
                # Model and batches may share torch's generator: what the model drew in the skipped steps is in here.
                self._set_generators(self._resumed)
                self._resumed = None
            together: list[tuple[Any, Any]] = []
            for batch in iterator:
                together.append(pair_of(batch))
                if len(together) == self._n_together:
                    self.taken += len(together)
                    yield together
                    together = []
            if self.taken < self._n_batches:
                got = f"{self.taken} of {self._n_batches} in epoch {self.epoch + 1}"
                raise ArgumentError("batches", got, "as many in each as their length says, so no iterator")
            self.epoch, self.taken = self.epoch + 1, 0

    def numbers(self) -> dict[str, int]:
        """Where it is."""
        return {"epoch": self.epoch, "taken": self.taken}

    def tensors(self) -> dict[str, Tensor]:
        """States of the generators, at the beginning of the epoch and now."""
        return {f"start.{name}": state for name, state in self._start.items()} | {
            f"now.{name}": state for name, state in self._generators().items()
        }

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Makes the next iteration begin after the batch at which the state was taken.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: That is no state of these generators.
        """
        for name, state in tensors.items():
            own = getattr(self._batches, "generator", None) if name.endswith(".batches") else None
            if not name.endswith(".cuda"):
                torch.Generator("cpu" if own is None else own.device).set_state(state)
        if not {"start.torch", "now.torch"} <= set(tensors):
            raise KeyError("torch")
        self.epoch, self.taken = int(numbers["epoch"]), int(numbers["taken"])
        self._start = {name.removeprefix("start."): t for name, t in tensors.items() if name.startswith("start.")}
        self._resumed = {name.removeprefix("now."): t for name, t in tensors.items() if name.startswith("now.")}

    def _generators(self) -> dict[str, Tensor]:
        states = {"torch": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        own = getattr(self._batches, "generator", None)
        if isinstance(own, torch.Generator):
            states["batches"] = own.get_state()
        return states

    def _set_generators(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        if "cuda" in states and self._device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self._device)
        own = getattr(self._batches, "generator", None)
        if isinstance(own, torch.Generator) and "batches" in states:
            own.set_state(states["batches"])
