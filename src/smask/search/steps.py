"""Steps of a search: its optimiser, the moment at which masks are fixed, and all of its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .densities import cubic
from .methods import Method
from .schedule import Schedule
from .scores import MaskedWeight
from .weights import Maskable

# Steps between two looks at the thresholds and at the loss.
N_REFRESH = 40
START_DENSITY = 0.5


def masked_weights(
    weights: Mapping[str, Maskable],
    densities: Mapping[str, float],
    method: Method,
    *,
    base: str = "signed",
    seed: int = 0,
    per_channel: bool = True,
    learn_scale: bool = True,
) -> dict[str, MaskedWeight]:
    """Scores for every weight; stream i of the seed is the base of the i-th."""
    random = torch.Generator().manual_seed(seed % 2**63)
    layers = {}
    for stream, (name, one) in enumerate(weights.items()):
        weight, density = one.weight, densities[name]
        learned = learn_scale and method.learns_scale
        layer = MaskedWeight(
            weight, method, kind=base, seed=seed, stream=stream, per_channel=per_channel and method.learns_scale,
            density=density, fan_in=one.fan_in * (max(START_DENSITY, density) if learned and method.falls else density),
        )  # fmt: skip
        with torch.no_grad():
            layer.latent.mul_(method.initial(weight.shape, random).to(weight.device))
            if len(layer.scale) > 1:
                layer.scale[list(one.silent)] = 0  # where it stays: its gradient is that of weights over a scale of 0
        layer.scale.requires_grad_(learned)
        weight.requires_grad_(True)
        layers[name] = layer
    return layers


class Search:
    """Optimiser, schedule and the moment at which masks are fixed."""

    def __init__(self, model: nn.Module, layers: dict[str, MaskedWeight], schedule: Schedule) -> None:
        self.model, self.layers, self.schedule, self.done = model, layers, schedule, 0
        masked = {id(layer.weight) for layer in layers.values()}
        self._others = {name: p for name, p in model.named_parameters() if id(p) not in masked}
        trained = [*self._others.values()]
        trained += [parameter for layer in layers.values() for parameter in (layer.latent, layer.scale)]
        self.optimizer = torch.optim.Adam(
            [parameter for parameter in trained if parameter.requires_grad], lr=schedule.lr, fused=True
        )
        self.method = next(iter(layers.values())).method
        self.levels: dict[str, Tensor] = {}

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
        """Kept weights over weights of all masked layers now."""
        return self._together(lambda layer: layer.now)

    def density_at_end(self) -> float:
        """The same at the end."""
        return self._together(lambda layer: layer.density)

    def _together(self, density: Callable[[MaskedWeight], float]) -> float:
        kept = sum(density(layer) * layer.n_weights for layer in self.layers.values())
        return kept / sum(layer.n_weights for layer in self.layers.values())

    def floats(self) -> list[Tensor]:
        """Scales and the other floats that the file will hold."""
        state = [*self._others.values(), *(b for b in self.model.buffers() if b.is_floating_point())]
        return [*(layer.scale for layer in self.layers.values()), *state]

    def write(self, *, refresh: bool = False) -> None:
        """Puts masked weights into the model."""
        if refresh:
            self.method.balance(self.layers, {name: self.density_of(layer) for name, layer in self.layers.items()})
        for layer in self.layers.values():
            layer.write()

    def step(
        self, x: Any, y: Any, loss: Callable[[Any, Any], Tensor], *, seen: Callable[[Any, Any], None] | None = None
    ) -> Tensor:
        """One batch: masks, forward, backward, update; returns the loss. ``seen`` is shown outputs and targets.

        Inputs that are a tuple or list are the arguments of the model, those of a mapping its keyword arguments.
        """
        if self.done == self.schedule.n_search:
            self.fix()
        self.write(refresh=not self.levels and self.done % N_REFRESH == 0)
        if isinstance(x, Mapping):
            outputs = self.model(**x)
        else:
            outputs = self.model(*x) if isinstance(x, tuple | list) else self.model(x)
        value = loss(outputs, y)
        if seen is not None:
            seen(outputs, y)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        for layer in self.layers.values():
            layer.take_gradient()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.done)
        self.optimizer.step()
        self.done += 1
        return value.detach()

    def counts(self, densities: Mapping[str, float] | None = None) -> dict[str, int]:
        """Exact number of kept weights of each layer, at the end or at given densities; never none."""
        return {
            name: max(1, round((densities[name] if densities else layer.density) * layer.n_weights))
            for name, layer in self.layers.items()
        }

    def levels_of(self, counts: Mapping[str, int], orders: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Levels, uint8 [n_weights], that keep so many weights of each layer; ``orders`` saves sorting them again."""
        levels = {}
        for name, layer in self.layers.items():
            order = orders[name] if orders else layer.order()
            levels[name] = torch.zeros(layer.n_weights, dtype=torch.uint8)
            n_coats = self.method.n_coats
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
        for name, layer in self.layers.items():
            layer.now = layer.density
            layer.keep(levels[name])

    def numbers(self) -> dict[str, Any]:
        """The plain values among the state."""
        densities = {name: layer.density for name, layer in self.layers.items()}
        now = {name: layer.now for name, layer in self.layers.items()}
        return {"done": self.done, "schedule": self.schedule.numbers(), "densities": densities, "now": now}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state, not copied."""
        found = {f"model.{name}": p.detach() for name, p in self._others.items()}
        found |= {f"buffer.{name}": b for name, b in self.model.named_buffers()}
        for name, layer in self.layers.items():
            found |= {f"layer.{name}.{part}": tensor for part, tensor in layer.tensors().items()}
        found |= {f"levels.{name}": levels for name, levels in self.levels.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{index}.{part}": tensor for part, tensor in moments.items()}
        return found

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes over the state of a search of the same settings."""
        self.done = int(numbers["done"])
        self.schedule.restore(numbers["schedule"])
        for name, layer in self.layers.items():
            layer.density, layer.now = numbers["densities"][name], numbers["now"][name]
        with torch.no_grad():
            for kind, here in (("model", self._others), ("buffer", dict(self.model.named_buffers()))):
                for name, tensor in here.items():
                    tensor.copy_(tensors[f"{kind}.{name}"])
        self.levels = {name: tensors[f"levels.{name}"] for name in self.layers if f"levels.{name}" in tensors}
        for name, layer in self.layers.items():
            layer.restore(
                {part: tensors[f"layer.{name}.{part}"] for part in layer.tensors()}, levels=self.levels.get(name)
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, part = name.split(".")
                moments.setdefault(int(index), {})[part] = tensor
        parameters = self.optimizer.param_groups[0]["params"]
        for place, parts in moments.items():
            if {*parts} != {"step", "exp_avg", "exp_avg_sq"} or parts["exp_avg"].shape != parameters[place].shape:
                raise ValueError(f"moments of parameter {place}")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
