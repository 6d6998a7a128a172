"""All steps of a search and what goes on beside them: reports, early stopping, snapshots, a size to meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from .budget import Budget
from .nested import moved
from .objective import Objective
from .order import Order
from .progress import Meter, Progress
from .ranks import batch_digest
from .sizes import estimated_bytes
from .snapshots import Keeper, Snapshot
from .steps import N_REFRESH, Search


class Run:
    """All steps of a search with what goes on beside them: reports, validation, early stopping, snapshots."""

    def __init__(
        self,
        search: Search,
        order: Order,
        n_epochs: int,
        n_batches: int,
        objective: Objective,
        progress: Callable[[Progress], None] | None,
        validate: Callable[[nn.Module], float] | None,
        patience: int | None,
        keeper: Keeper | None,
        budget: Budget | None,
    ) -> None:
        self.search, self.order, self.n_epochs, self.n_batches = search, order, n_epochs, n_batches
        self.objective, self.ranks = objective, search.ranks
        self.progress, self.validate, self.patience = progress, validate, patience
        self.keeper, self.budget = keeper, budget
        self.meter, self.epoch_losses = Meter(self.ranks, search.whole), torch.zeros(())
        self.validation: float | None = None
        self.best, self.n_stale, self.first_step = -math.inf, 0, 0
        self.device = next(iter(search.layers.values())).scale.device
        # What lies on several ranks is gathered by all of them, whoever keeps the snapshot.
        self._is_shared = search.is_spread

    def go(self, settings: Mapping[str, Any]) -> None:
        """Runs to the end, from the keeper's snapshot if it has one; of several ranks the first asks its keeper."""
        keeper = self.keeper
        kept = self.ranks.snapshot(lambda: keeper.last(settings) if keeper else None)
        place = keeper.place if kept and keeper else None
        if kept:
            try:
                self._restore(kept)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                raise CheckpointError(str(place), f"its state is not that of a search: {error!r}") from None
        search = self.search
        for batch in () if search.finished else self.order:
            if self.budget and self.budget.due():
                self.meter.check(search.done, place)
                self.budget.calibrate()
            if self.budget and search.done == search.schedule.n_search and not search.levels:
                self.meter.check(search.done, place)
                self.budget.meet()
            here = [moved(one, self.device) for one in batch]
            # At the start of every epoch: orders that differ may begin alike.
            if self.ranks.size > 1 and (search.done == self.first_step or self.order.taken == len(batch)):
                self.ranks.check_same(batches=batch_digest(here))
            value = search.step(here, self.objective, seen=self.meter.seen)
            self.meter.add(value)
            if self.patience and not self.validate:
                self.epoch_losses = self.epoch_losses + value
            ended = search.finished
            if ended:
                self._finish(place)
            if search.done % N_REFRESH == 0 or ended:
                self._report(place)
            if self.order.taken == self.n_batches:
                self.meter.check(search.done, place)
                self._after_epoch()
            if search.finished and not ended:  # by patience, where no step is left for floats alone
                self._finish(place)
                self._report(place)
            if self._due():
                self.meter.check(search.done, place)
                snapshot = self._snapshot()
                if keeper:
                    keeper.keep(snapshot)
                    place = keeper.place
            if search.finished:
                break

    def _finish(self, place: str | None) -> None:
        """Masks to the size that is wanted: floats moved since they were fixed, and their bytes with them."""
        self.meter.check(self.search.done, place)
        if self.budget:
            self.budget.meet()
            self.search.keep(self.search.levels_of(self.search.counts()))

    def _due(self) -> bool:
        """Whether to keep a snapshot now; where that takes all ranks they look only now and then."""
        search, keeper = self.search, self.keeper
        if not self._is_shared:
            return keeper is not None and (keeper.due() or search.finished)
        if search.done % N_REFRESH and not search.finished:
            return False
        return bool(self.ranks.value(keeper is not None and (keeper.due() or search.finished)))

    def _report(self, place: str | None) -> None:
        self.meter.check(self.search.done, place)
        loss, accuracy = self.meter.read()
        search = self.search
        if self.progress or self._is_shared:
            planes = {
                name: (at.part_of_all(at.now), at.n_weights, at.method.n_values) for name, at in search.layers.items()
            }
            n_bytes = estimated_bytes(planes, search.floats())
        if self.progress:
            self.progress(
                Progress(
                    search.done, search.schedule.n_steps, self.order.epoch + 1, self.n_epochs, loss, search.density(),
                    n_bytes, accuracy, self.validation, self.first_step, search.clamped(),
                )
            )  # fmt: skip

    def _after_epoch(self) -> None:
        search = self.search
        if self.ranks.size > 1:
            self.ranks.check_same(scores=search.digest())
        if self.validate:
            search.gather()
            search.prepare()
            search.write()
            search.model.eval()
            self.validation = self.ranks.value(float(self.validate(search.model)))
            search.model.train()
        if self.patience and not search.levels and search.schedule.descent(search.done) == 1:
            value = -float(search.whole(self.epoch_losses)) if self.validation is None else self.validation
            self.n_stale = 0 if value > self.best else self.n_stale + 1
            self.best = max(self.best, value)
            if self.n_stale >= self.patience:
                search.schedule.wind_up(search.done)
        self.epoch_losses = torch.zeros(())

    def _snapshot(self) -> Snapshot:
        numbers = {
            "search": self.search.numbers(), "order": self.order.numbers(), "validation": self.validation,
            "best": self.best if math.isfinite(self.best) else None, "n_stale": self.n_stale,
        }  # fmt: skip
        tensors = {f"random.{name}": state for name, state in self.order.tensors().items()}
        losses = self.search.whole(self.epoch_losses)
        return Snapshot(self.search.done, numbers, self.search.tensors() | tensors | {"losses": losses})

    def _restore(self, kept: Snapshot) -> None:
        numbers = kept.numbers
        self.search.restore(numbers["search"], kept.tensors)
        states = {n.removeprefix("random."): t for n, t in kept.tensors.items() if n.startswith("random.")}
        self.order.restore(numbers["order"], states)
        self.validation, self.n_stale = numbers["validation"], int(numbers["n_stale"])
        self.best = -math.inf if numbers["best"] is None else float(numbers["best"])
        self.epoch_losses = self.search.part(kept.tensors["losses"].to(self.device))
        self.first_step = kept.step
