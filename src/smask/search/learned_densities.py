"""Densities that scores decide: probabilities of a wanted mean, and a price of bits under which layers compete."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .scores import TEMPERATURE, MaskedWeight

# How fast the price follows: it doubles within ten refreshes at twice the wanted density.
GAIN = 0.1
# A price that moves nothing yet; it finds its height itself.
FIRST_PRICE = 1e-7


def shift_probabilities(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """Thresholds at which the probabilities of a layer have the wanted mean, by bisection over a sample."""
    for name, layer in layers.items():
        layer.now = density = densities[name]
        sample = layer.sample()
        low, high = float(sample.min()) - 1, float(sample.max()) + 1
        for _ in range(30):
            middle = (low + high) / 2
            over = float(((sample - middle) / TEMPERATURE).sigmoid_().mean()) > density
            low, high = (middle, high) if over else (low, middle)
        layer.threshold.fill_((low + high) / 2)


def move_price(layers: Mapping[str, MaskedWeight], densities: Mapping[str, float]) -> None:
    """Raises the price of a bit while more weights are kept than wanted, lowers it while fewer are; one for all."""
    wanted = kept = 0.0
    for name, layer in layers.items():
        layer.threshold.zero_()
        layer.now = float((layer.sample() > 0).float().mean())
        if layer.now == 0:  # prevented: a layer without any weight has no gradient that could bring one back
            layer.threshold.copy_(layer.sample().max() - 1e-6)
            layer.now = 1 / layer.n_weights
        wanted += densities[name] * layer.n_weights
        kept += layer.now * layer.n_weights
    for layer in layers.values():
        price = float(layer.price) or FIRST_PRICE
        layer.price.fill_(price * math.exp(GAIN * max(-1.0, min(math.log(kept / wanted) * 4, 1.0))))


def priced(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """The straight-through gradient, and the price of the bits that a kept weight adds to its plane.

    A plane of n weights at density p costs n H(p) bits, one more kept weight log2((1 - p) / p) of them. The weight
    counts as kept with probability sigmoid(s / temperature), so that only scores near zero feel the price.
    """
    p = min(max(layer.now, 1 / layer.n_weights), 0.5 - 1e-3)
    bits = math.log2((1 - p) / p)
    latents = gradient if layer.kind == "signed" else gradient.mul_(layer.base.abs())
    near = torch.mul(layer.latent.detach(), layer.sign, out=layer.scratch).div_(TEMPERATURE).sigmoid_()
    near.mul_(1 - near).mul_(layer.price * bits).mul_(layer.sign)
    return latents.add_(near)


def shares(layers: Mapping[str, MaskedWeight], density: float) -> dict[str, float]:
    """Densities of the layers under one threshold of all scores, such that all together keep ``density``."""
    samples = {name: layer.sample() for name, layer in layers.items()}
    n = sum(layer.n_weights for layer in layers.values())
    low = min(float(sample.min()) for sample in samples.values()) - 1
    high = max(float(sample.max()) for sample in samples.values())
    for _ in range(40):
        middle = (low + high) / 2
        kept = sum(float((samples[name] > middle).float().mean()) * layer.n_weights for name, layer in layers.items())
        low, high = (middle, high) if kept > density * n else (low, middle)
    return {
        name: max(float((samples[name] > low).float().mean()), 1 / layer.n_weights) for name, layer in layers.items()
    }
