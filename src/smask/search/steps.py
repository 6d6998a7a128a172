"""Steps of a search: its optimiser, the moment at which masks are fixed, and all of its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import integrity
from .allotment import Allotments
from .densities import cubic
from .exchange import exchange_some
from .initialisation import START_DENSITY
from .nested import called
from .objective import Objective
from .optimizer import forget_gradients, moments_of, optimizer_of, parameters_of, restore_moments, set_rate
from .precision import Precision
from .ramps import place_ramps
from .ranks import Ranks, running_statistics
from .recording import Batch, Recorder, Seen
from .schedule import Schedule
from .scores import MaskedWeight
from .snapshots import plain_state
from .statistics import lasting

# Steps between two looks at the thresholds and at the loss.
N_REFRESH = 40
# Steps for which kept weights have their levels, where there are several: found in every step they cost as much as all
# else around masks. Of 4 kB nothing is lost on MNIST images set aside, with 40 it is 0.2 %.
N_BETWEEN_LEVELS = 4


class Search:
    """Optimiser, schedule and the moment at which masks are fixed; layers in ``fixed`` keep the density given there."""

    def __init__(
        self, model: nn.Module, layers: dict[str, MaskedWeight], schedule: Schedule, *,
        precision: Precision | None = None, ranks: Ranks | None = None, seed: int = 0,
        fixed: Mapping[str, float] | None = None, record: bool = False,
    ) -> None:  # fmt: skip
        self._allotments = Allotments(layers, fixed or {})
        self.model, self.layers, self.schedule, self.done, self._seed = model, layers, schedule, 0, seed
        self.own: Mapping[str, MaskedWeight] = layers  # those that this process trains
        device = next(iter(layers.values())).scale.device
        self.precision, self.ranks = precision or Precision("fp32", device), ranks or Ranks(None, device)
        masked, self.method = {id(one.parameter) for one in layers.values()}, next(iter(layers.values())).method
        self._others = {name: p for name, p in model.named_parameters() if id(p) not in masked}
        self.optimizer = optimizer_of(
            self._others.values(), layers.values(), lr=schedule.lr, n_steps=schedule.n_steps,
            n_passes=schedule.n_passes, dtype=self.precision.products,
        )  # fmt: skip
        self.levels: dict[str, Tensor] = {}
        self._recorder = self._new_recorder(device) if record else None

    @property
    def is_spread(self) -> bool:
        """Whether some of what is trained is only in other processes."""
        return any(layer.is_shared for layer in self.layers.values())

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.schedule.n_steps

    def density_of(self, layer: MaskedWeight) -> float:
        """Density of a layer now."""
        if not layer.method.falls:
            return layer.density
        start = max(START_DENSITY, layer.density)
        return cubic(self.schedule.descent(self.done), start=start, end=layer.density)

    def density(self) -> float:
        """Kept weights over usable weights of all masked layers now."""
        return self._together(lambda layer: layer.now)

    def density_at_end(self) -> float:
        """The same at the end."""
        return self._together(lambda layer: layer.density)

    def _new_recorder(self, device: torch.device) -> Recorder | None:
        """What records steps, where they do the same every time and no other process has a part in them."""
        same = not (self.method.draws or self.method.averages or self.method.wish or self.precision.looks)
        return Recorder(self.update) if device.type == "cuda" and same and self.ranks.size == 1 else None

    def _together(self, density: Callable[[MaskedWeight], float]) -> float:
        kept = sum(density(layer) * layer.n_usable for layer in self.layers.values())
        return kept / max(1, sum(layer.n_usable for layer in self.layers.values()))

    def allotted(self, density: float) -> dict[str, float]:
        """What each layer keeps of a density of all together, as scores are now; see :class:`Allotments`."""
        return self._allotments.at(density, self.done)

    def floats(self) -> list[Tensor]:
        """Scales and the other floats that take bytes in the file: those that are not all alike."""
        scales = (layer.scales() for layer in self.layers.values() if layer.scale.requires_grad)
        return [*scales, *self._others.values(), *lasting(self.model)]

    @torch.no_grad()
    def prepare(self, *, refresh: bool = False) -> None:
        """Thresholds, levels and draws of the next step."""
        if refresh and self.method.worth:
            for name, density in self.allotted(self.density_at_end()).items():
                self.layers[name].density = density
        if refresh:
            self.method.balance(self.own, {name: self.density_of(layer) for name, layer in self.own.items()})
            place_ramps(self.own.values(), self.schedule.ramp(self.done))
        for layer in self.own.values():
            if layer.method.draws:
                layer.seed_draws(self.done)
            if layer.kept is None and self.done % N_BETWEEN_LEVELS == 0:
                layer.grade()

    @torch.no_grad()
    def write(self) -> None:
        """Puts masked weights into the model."""
        for layer in self.own.values():
            layer.write()

    def step(self, batch: Batch, objective: Objective, *, seen: Seen | None = None) -> Tensor:
        """One batch: masks, forward, backward, update.

        Args:
            batch: Inputs and targets, in parts that go through the model one after the other. Inputs that are a tuple
                or list are the arguments of the model, those of a mapping its keyword arguments.
            objective: What is made small.
            seen: Is shown outputs and targets, those of this rank.

        Returns:
            The mean loss over all inputs, of all ranks.
        """
        if self.done == self.schedule.n_search:
            self.fix()
        self.prepare(refresh=not self.levels and self.done % N_REFRESH == 0)
        set_rate(self.optimizer, self.schedule.rate(self.done))
        if self._recorder:
            on_ramp = tuple(layer.ramp.width > 0 for layer in self.layers.values())
            kind = (bool(self.levels), self.done % self.method.n_between_scales, on_ramp)
            total = self._recorder.step(kind, batch, objective, seen)
        else:
            total = self.update(batch, objective, seen)
        self.done += 1
        return total

    def update(self, batch: Batch, objective: Objective, seen: Seen | None) -> Tensor:
        """All of a step but :meth:`prepare`, arguments and result as of :meth:`step`."""
        self.write()
        forget_gradients(self.optimizer)
        total = self.gradients(batch, objective, seen)
        if self.method.wish and not self.levels:
            exchange_some(self.own, self.method.wish, step=self.done, n_search=self.schedule.n_search)
        self.precision.step(self.optimizer)
        return total

    def gradients(self, batch: Batch, objective: Objective, seen: Seen | None) -> Tensor:
        """Gradients of all that is trained, arguments and result as of :meth:`step`."""
        alone = len(batch) == 1 and self.ranks.size == 1
        shares = [(*batch[0], 1, 1)] if alone else [self.ranks.share(part) for part in batch]
        n_inputs, losses = sum(n for *_, n in shares), list[Tensor]()
        with self.ranks.own_random(self._seed, self.done):
            for x, y, n_own, _ in shares:
                with self.precision.passes():
                    outputs = self.precision.outputs(called(self.model, x))
                    value = objective(outputs, x, y)
                value = value if alone else value * (n_own / n_inputs)
                self.precision.backward(value)
                losses.append(value.detach())
                if seen is not None and n_own:
                    seen(outputs, y)
        total = sum(losses[1:], losses[0])
        self._take_gradients(total)
        return total

    @torch.no_grad()
    def _take_gradients(self, loss: Tensor) -> None:
        """Gradients of weights become those of scores and scales, on all ranks the same; the loss is summed too."""
        layers = self.layers.values()
        for layer in layers:  # of fixed masks only the scales are trained, much less to send
            if layer.kept is not None:
                layer.take_gradient()
        if self.ranks.size > 1:
            own = [layer.parameter if layer.kept is None else layer.scale for layer in layers]
            shared = {id(p) for layer in layers if layer.is_shared for p in (layer.parameter, layer.scale)}
            own = [p for p in (*own, *self._others.values()) if p.requires_grad and id(p) not in shared]
            self._sum_gradients(own, loss)
        for layer in layers:
            if layer.kept is None:
                layer.take_gradient(self.done)

    def _sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        absent = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
        there = torch.ones(len(parameters), device=loss.device)
        there[absent] = 0
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # Every rank's norms saw other inputs; the mean of what they remember is the same on all.
        remembered = running_statistics(self.model)
        self.ranks.sum([*gradients, *remembered, there, loss])
        for tensor in remembered:
            tensor.div_(self.ranks.size)
        for index in absent:  # where no rank has a gradient, there is none
            parameters[index].grad = gradients[index] if bool(there[index]) else None

    def gather(self) -> None:
        """Makes everything that is trained known here, where other processes train a part of it."""

    def whole(self, loss: Tensor) -> Tensor:
        """A loss of which every process has its part; to be called by all."""
        return loss

    def part(self, loss: Tensor) -> Tensor:
        """This process' part of what :meth:`whole` gave."""
        return loss

    def digest(self) -> str:
        """sha256 over what is trained and is the same on all ranks."""
        trained = {name: p.detach() for name, p in self._others.items()}
        for name, layer in self.layers.items():
            parts = {"latent": layer.latent, "scale": layer.scale, "threshold": torch.tensor(layer.threshold)}
            trained |= {f"{name}.{part}": p.detach() for part, p in parts.items() if not layer.is_shared}
        return integrity.digest(trained | {f"levels.{name}": levels for name, levels in self.levels.items()})

    def counts(self, densities: Mapping[str, float] | None = None) -> dict[str, int]:
        """Exact number of kept weights of each layer, at the end or at given densities; never none."""
        return {
            name: max(1, round((densities[name] if densities else layer.density) * layer.n_usable))
            for name, layer in self.layers.items()
        }

    def clamped(self) -> tuple[str, ...]:
        """Layers that would keep no weight or one, and keep one."""
        return tuple(name for name, n_kept in self.counts().items() if n_kept == 1 and self.layers[name].n_weights > 1)

    def levels_of(self, counts: Mapping[str, int], orders: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Levels, uint8 [n_weights], that keep so many weights of each layer; ``orders`` saves sorting them again."""
        levels, n_coats = dict[str, Tensor](), self.method.n_coats
        for name, layer in self.layers.items():
            order = orders[name] if orders else layer.order()
            levels[name] = torch.zeros(layer.n_weights, dtype=torch.uint8)
            for coat in range(1, n_coats + 1):
                levels[name][order[: -(-counts[name] * coat // n_coats)]] += 1
        return levels

    def fix(self) -> dict[str, Tensor]:
        """Final levels, uint8 [n_weights] by name; the first call fixes them."""
        if not self.levels:
            self.keep(self.levels_of(self.counts()))
        return self.levels

    def keep(self, levels: dict[str, Tensor]) -> None:
        """Makes these levels the final ones."""
        self.levels = levels
        if self._recorder:
            self._recorder.forget()
        for name, layer in self.layers.items():
            layer.now = layer.density
            layer.keep(levels[name])

    def numbers(self) -> dict[str, Any]:
        """The plain values among the state."""
        densities = {name: layer.density for name, layer in self.layers.items()}
        now = {name: layer.now for name, layer in self.layers.items()}
        return {
            "done": self.done, "schedule": self.schedule.numbers(), "densities": densities, "now": now,
            "precision": self.precision.numbers(),
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state, not copied."""
        found = plain_state(self.model, self._others)
        for name, layer in self.layers.items():
            found |= {f"layer.{name}.{part}": tensor for part, tensor in layer.tensors().items()}
        found |= {f"levels.{name}": levels for name, levels in self.levels.items()}
        return found | moments_of(self.optimizer, self._rows_of_parameters())

    def _rows_of_parameters(self) -> dict[int, MaskedWeight]:
        """Places in the optimiser of what lies in rows on several ranks."""
        layers = [layer for layer in self.layers.values() if layer.is_shared]
        shared = {id(layer.latent): layer for layer in layers}
        shared |= {id(layer.scale): layer for layer in layers if layer.per_channel}
        return {place: shared[id(p)] for place, p in enumerate(parameters_of(self.optimizer)) if id(p) in shared}

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes over the state of a search of the same settings."""
        self.done = int(numbers["done"])
        self.schedule.restore(numbers["schedule"])
        self.precision.restore(numbers["precision"])
        for name, layer in self.layers.items():
            layer.density, layer.now = numbers["densities"][name], numbers["now"][name]
        with torch.no_grad():
            for name, tensor in plain_state(self.model, self._others).items():
                tensor.copy_(tensors[name])
        self.levels = {name: tensors[f"levels.{name}"] for name in self.layers if f"levels.{name}" in tensors}
        for name, layer in self.layers.items():
            layer.restore(
                {part: tensors[f"layer.{name}.{part}"] for part in layer.tensors()}, levels=self.levels.get(name)
            )
        place_ramps(self.own.values(), self.schedule.ramp(self.done - self.done % N_REFRESH))
        restore_moments(self.optimizer, tensors, self._rows_of_parameters())
