"""Searches whose blocks do not wait for each other: each updates its scores by what its own guide says.

A step of a block: it takes the activations of the block before, sends on its own, and asks its guide, not the blocks
behind it, for the gradient of its output; its scores follow at once. The last block has the loss. Where blocks answer,
each tells the one before it the gradient of its input, itself of a guide but for the last block, and from that the
guide of the one before learns, :data:`LAG` steps later.

With a process for each block they work at the same time. All that a step computes is the same then, the same numbers in
the same order: one process finds the bytes that several find. A process trains its own block and has gradients and
moments of no other; of the others' scores it has copies, brought up to date where the whole is wanted: to meet a size,
to validate, to keep a checkpoint, at the end. All wait there, and at reports (:data:`smask.search.steps.N_REFRESH`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .blocks import shapes_between
from .guides import Generator, Guide
from .nested import called, tensors_in
from .objective import Objective
from .optimizer import parameters_of
from .plan import Plan
from .precision import Precision
from .ranks import Ranks, random_at
from .recording import Batch, Seen
from .schedule import Schedule
from .scores import MaskedWeight
from .snapshots import plain_state
from .steps import Search
from .wires import Between, Inside, Wire

# Steps after which a guide learns from an answer: while one block is at a step the next may still be at the one before.
LAG = 2


@dataclass
class Unanswered:
    """Outputs of a block whose gradient its guide has not learned from yet."""

    outputs: Tensor
    labels: Tensor | None
    gradient: Callable[[], Tensor]


class DecoupledSearch(Search):
    """A search whose blocks have guides; this process trains all blocks or, of several processes, the one of its rank.

    Args:
        plan: How.
        ranks: A process for each block, or one for all.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, MaskedWeight],
        schedule: Schedule,
        *,
        plan: Plan,
        precision: Precision,
        ranks: Ranks,
        seed: int,
    ) -> None:
        super().__init__(model, layers, schedule, precision=precision, ranks=ranks, seed=seed)
        self._plan, n = plan, len(plan.blocks)
        self._places: Sequence[int] = range(n) if ranks.size == 1 else [ranks.rank]
        here = [plan.blocks[place] for place in self._places]
        self.own = {name: layers[name] for block in here for name in block.masked}
        self._own_names = frozenset[str]().union(*(block.names for block in here))
        self._device = next(iter(layers.values())).scale.device
        self._wires: list[Wire] = [
            Inside() if ranks.size == 1 else Between(ranks, place + 1 if place == ranks.rank else place)
            for place in range(n - 1)
        ]
        self._guides: dict[int, Guide] = {}
        self._unanswered: dict[int, deque[Unanswered]] = {place: deque() for place in self._places}
        self._shapes: dict[tuple[torch.Size, ...], tuple[torch.Size, ...]] = {}
        self._restored: dict[str, Tensor] = {}

    @property
    def is_spread(self) -> bool:
        return self.ranks.size > 1

    def prepare(self, *, refresh: bool = False) -> None:
        super().prepare(refresh=refresh)
        if refresh:
            for layer in self.layers.values():
                layer.now = self.density_of(layer)

    def gradients(self, batch: Batch, objective: Objective, seen: Seen | None) -> Tensor:
        ((x, y),) = batch
        shapes = self._shapes_for(x, y)
        total = torch.zeros((), device=self._device)
        rate = self.schedule.rate(self.done) / self.schedule.lr
        for place in self._places:
            value = self._pass(place, x, y, objective, shapes, rate, seen)
            total = total if value is None else value
        for place in self._places:
            unanswered = self._unanswered[place]
            if len(unanswered) > LAG:
                oldest, guide = unanswered.popleft(), self._guides[place]
                assert isinstance(guide, Generator)
                guide.correct(oldest.outputs, oldest.labels, oldest.gradient(), rate)
        with torch.no_grad():
            for layer in self.own.values():
                layer.take_gradient(self.done)
        return total

    def _pass(
        self, place: int, x: Any, y: Any, objective: Objective, shapes: Sequence[torch.Size], rate: float,
        seen: Callable[[Any, Any], None] | None,
    ) -> Tensor | None:  # fmt: skip
        """Forward and backward pass of one block; the loss, of the last one."""
        modules, answers = self._plan.blocks[place].modules, self._plan.decoupling.answers
        inputs, value = x, None
        if place:
            taken = self._wires[place - 1].take(torch.empty(shapes[place - 1], device=self._device))
            inputs = taken.detach().requires_grad_(answers)
        with random_at(self._device, self._seed, self.done, place):
            with self.precision.passes():
                outputs = self.precision.outputs(called(modules, inputs))
                if place == len(shapes) - 1:
                    value = objective(outputs, x, y)
            if value is None:
                sent = outputs.detach()
                answer = self._wires[place].send(sent, answered=answers)
                if answer is not None:
                    labels = y if self._plan.labels else None
                    self._unanswered[place].append(Unanswered(sent, labels, answer))
                self._guides[place].backward(outputs, x, y, objective, rate)
            else:
                self.precision.backward(value)
                if seen is not None:
                    seen(outputs, y)
        if place and answers:
            self._wires[place - 1].answer(inputs.grad)
        return None if value is None else value.detach()

    def _shapes_for(self, x: Any, y: Any) -> tuple[torch.Size, ...]:
        """What each block gives for such inputs; the first time also guides for outputs of these shapes."""
        key = tuple(tensor.shape for tensor in tensors_in(x))
        if key not in self._shapes:
            self._shapes[key] = shapes_between(self._plan.blocks, x)
        shapes = self._shapes[key]
        if not self._guides:
            # Each process makes guides of its own blocks; what they draw must not move the order of the batches.
            with torch.random.fork_rng(devices=[]):
                for place in self._places:
                    if place < len(shapes) - 1:
                        guide = self._plan.decoupling.guide(shapes[place], shapes[-1], y, self._plan.labels)
                        guide.ready(self._device)
                        self._guides[place] = guide
            self._take_over()
        return shapes

    def _take_over(self) -> None:
        """Gives guides the state that was restored before there were any."""
        restored, self._restored = self._restored, {}
        for place, guide in self._guides.items() if restored else ():
            try:
                guide.restore(_below(restored, f"guide.{place}."))
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointError("of the search", f"its state is not that of its guides: {error!r}") from None

    def whole(self, loss: Tensor) -> Tensor:
        if self.is_spread:
            self.ranks.sum([loss := loss.clone()])
        return loss

    def part(self, loss: Tensor) -> Tensor:
        return loss if self._places[-1] == len(self._plan.blocks) - 1 else torch.zeros_like(loss)

    def floats(self) -> list[Tensor]:
        if not self.is_spread:
            return super().floats()
        mine = {name: p.detach() for name, p in (*self._others.items(), *self.model.named_buffers())}
        mine = {name: p for name, p in mine.items() if name in self._own_names and p.is_floating_point()}
        return [*self.ranks.merged(mine | {f"{name}.scale": one.scales() for name, one in self.own.items()}).values()]

    def digest(self) -> str:
        return "" if self.is_spread else super().digest()  # each has what no other has

    def tensors(self) -> dict[str, Tensor]:
        found = super().tensors() | self._restored
        for place, guide in self._guides.items():
            found |= {f"guide.{place}.{name}": tensor for name, tensor in guide.tensors().items()}
        for place, unanswered in self._unanswered.items():
            for index, one in enumerate(unanswered):
                gradient = one.gradient()
                one.gradient = lambda gradient=gradient: gradient  # type: ignore[misc]
                parts = {"outputs": one.outputs, "labels": one.labels, "gradient": gradient}
                found |= {f"unanswered.{place}.{index}.{n}": part for n, part in parts.items() if part is not None}
        found = {name: tensor for name, tensor in found.items() if self._is_own(name)}
        return self.ranks.merged(found) if self.is_spread else found

    def _is_own(self, name: str) -> bool:
        kind, _, rest = name.partition(".")
        if kind == "layer":
            return rest.rpartition(".")[0] in self.own
        return rest in self.own if kind == "levels" else kind not in ("model", "buffer") or rest in self._own_names

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        mine = {id(p) for name, p in self._others.items() if name in self._own_names}
        mine |= {id(p) for layer in self.own.values() for p in (layer.latent, layer.scale)}
        strange = [i for i, p in enumerate(parameters_of(self.optimizer)) if id(p) not in mine]
        others = tuple(f"adam.{index}." for index in strange)
        super().restore(numbers, {name: t for name, t in tensors.items() if not name.startswith(others)})
        self._restored = {n: t for n, t in tensors.items() if n.startswith(tuple(f"guide.{p}." for p in self._places))}
        for place in self._places:
            found = _below(tensors, f"unanswered.{place}.")
            for index in range(sum(name.endswith(".outputs") for name in found)):
                gradient = found[f"{index}.gradient"]
                self._unanswered[place].append(
                    Unanswered(found[f"{index}.outputs"], found.get(f"{index}.labels"), lambda got=gradient: got)  # type: ignore[misc]
                )

    @torch.no_grad()
    def gather(self) -> None:
        if not self.is_spread:
            return
        found = self.tensors()
        for name, tensor in plain_state(self.model, self._others).items():
            tensor.copy_(found[name])
        for name, layer in self.layers.items():
            if name not in self.own:
                levels = found.get(f"levels.{name}")
                layer.restore(_below(found, f"layer.{name}."), levels=levels)
                if levels is not None:
                    self.levels[name] = levels
                layer.seed_draws(self.done)
                layer.write()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
