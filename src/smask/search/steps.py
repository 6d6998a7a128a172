"""Steps of a search: which weights are masked, their optimiser, schedules, and the moment masks are fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .densities import cubic
from .methods import Method
from .scores import MaskedWeight

MASKABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Steps between two looks at the thresholds and at the loss.
N_REFRESH = 40
START_DENSITY = 0.5


def maskable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that can be masked, by state-dict name."""
    weights = {
        f"{name}.weight".lstrip("."): cast(nn.Parameter, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, MASKABLE)
    }
    if not weights:
        raise ArgumentError("model", type(model).__name__, "a model with linear or convolution layers")
    names: dict[int, str] = {}
    for name, weight in weights.items():
        if weight.dtype != torch.float32:
            raise ArgumentError(name, str(weight.dtype), "weights of torch.float32")
        other = names.setdefault(id(weight), name)
        if other != name:
            raise ArgumentError(name, f"the same parameter as {other}", "weights that no two layers share")
    return weights


def zero_bias(module: nn.Module, *, learn: bool) -> None:
    """Biases of masked layers start at zero, and stay there if they are not learned."""
    if isinstance(module.bias, nn.Parameter):
        nn.init.zeros_(module.bias)
        module.bias.requires_grad_(learn)


def masked_weights(
    weights: Mapping[str, nn.Parameter],
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
    for stream, (name, weight) in enumerate(weights.items()):
        density = densities[name]
        layer = method.layer(
            weight, kind=base, seed=seed, stream=stream, per_channel=per_channel, density=density,
            start=max(START_DENSITY, density) if learn_scale else density,
        )  # fmt: skip
        with torch.no_grad():
            layer.latent.mul_(method.initial(weight.shape, random).to(weight.device))
        layer.scale.requires_grad_(learn_scale)
        weight.requires_grad_(True)
        layers[name] = layer
    return layers


class Search:
    """Optimiser, schedules and the moment at which masks are fixed."""

    def __init__(
        self, model: nn.Module, layers: dict[str, MaskedWeight], n_steps: int, *, lr: float, hold: float, settle: float
    ) -> None:
        self.model, self.layers, self.n_steps, self.done = model, layers, n_steps, 0
        self.n_search = max(1, round(n_steps * (1 - settle)))
        self.n_descent = max(1, round(n_steps * (1 - settle - hold)))
        masked = {id(layer.weight) for layer in layers.values()}
        trained = [parameter for parameter in model.parameters() if id(parameter) not in masked]
        trained += [parameter for layer in layers.values() for parameter in (layer.latent, layer.scale)]
        self.optimizer = torch.optim.Adam(
            [parameter for parameter in trained if parameter.requires_grad], lr=lr, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, n_steps) / n_steps))
        )
        self.masks: dict[str, Tensor] = {}

    def density_of(self, layer: MaskedWeight) -> float:
        """Density of a layer now."""
        return cubic(self.done / self.n_descent, start=max(START_DENSITY, layer.density), end=layer.density)

    def density(self) -> float:
        """Kept weights over weights of all masked layers now."""
        sizes = [layer.weight.numel() for layer in self.layers.values()]
        kept = sum(self.density_of(layer) * size for layer, size in zip(self.layers.values(), sizes, strict=True))
        return kept / sum(sizes)

    def step(self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """One batch: masks, forward, backward, update; returns the loss."""
        if self.done == self.n_search:
            self.fix()
        refresh = not self.masks and self.done % N_REFRESH == 0
        for layer in self.layers.values():
            if refresh:
                layer.refresh(self.density_of(layer))
            layer.write()
        value = loss(self.model(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        for layer in self.layers.values():
            layer.take_gradient()
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        return value.detach()

    def fix(self) -> dict[str, Tensor]:
        """Final masks, bool [n_weights] by name; the first call fixes them."""
        if not self.masks:
            self.masks = {name: layer.fix() for name, layer in self.layers.items()}
        return self.masks
