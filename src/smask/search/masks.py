"""What a layer is while masks are searched: weights of its latents, and gradients of its latents.

Masked weights are base times level times mask, without the scale, float32 [c, ...], in the layer's weight or its
scratch. Gradients may overwrite what they are given. Which method has which is in :mod:`smask.search.methods`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .exchange import MEMORY
from .scores import TEMPERATURE, MaskedWeight


def above(layer: MaskedWeight) -> Tensor:
    """Base * level where the rank of a weight, its score or the magnitude of that, is above the lowest threshold."""
    ranks, lowest = layer.ranks(), layer.lowest
    if isinstance(lowest, Tensor):
        return torch.mul(layer.graded, ranks > lowest, out=ranks)
    # One operator of torch, where comparing and then multiplying are two; and booleans cost conversions.
    torch.ops.aten.threshold_backward.grad_input(layer.graded, ranks, lowest, grad_input=ranks)
    return ranks


def ramped(layer: MaskedWeight) -> Tensor:
    """As :func:`above`, but on the ramp around the threshold, where there is one, weights are kept in part."""
    ramp, out = layer.ramp, layer.weight
    return ramp.parts(layer.latent, layer.sign, out=out).mul_(layer.graded) if ramp.width else above(layer)


def signs_above(layer: MaskedWeight) -> Tensor:
    """|base| * sign of the latent where its magnitude is above the threshold."""
    kept = torch.abs(layer.latent, out=layer.weight) > layer.lowest
    torch.sign(layer.latent, out=layer.weight).mul_(kept)
    return layer.weight if layer.kind == "signed" else layer.weight.mul_(layer.base.abs())


def signs_ramped(layer: MaskedWeight) -> Tensor:
    """As :func:`signs_above`, but on the ramp around the threshold, where there is one, weights are kept in part."""
    if not layer.ramp.width:
        return signs_above(layer)
    parts = layer.ramp.parts(layer.latent, None, out=layer.weight)
    torch.copysign(parts, layer.latent, out=parts)
    return parts if layer.kind == "signed" else parts.mul_(layer.base.abs())


def probabilities(layer: MaskedWeight) -> Tensor:
    """Probability of every weight, float32 [C, ...], in the layer's scratch."""
    scores = torch.mul(layer.latent.detach(), layer.sign, out=layer.scratch)
    return scores.sub_(layer.lowest).div_(TEMPERATURE).sigmoid_()


def sampled(layer: MaskedWeight) -> Tensor:
    """Base * a Bernoulli draw of every probability."""
    torch.bernoulli(probabilities(layer), generator=layer.random, out=layer.weight)
    return layer.weight.mul_(layer.base)


def expected(layer: MaskedWeight) -> Tensor:
    """Base * probability: the mean of the masked weights."""
    return probabilities(layer).mul_(layer.base)


def straight_through(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """The mask's derivative in the score is one: the gradient of a score is that of its weight times its base."""
    return gradient if layer.kind == "signed" else gradient.mul_(layer.base.abs())


def averaged(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """Straight through, and into the running mean; those that overflow, as in fp16, are left out of it."""
    if layer.mean_gradient is not None and bool(gradient.isfinite().all()):
        layer.mean_gradient.lerp_(gradient, 1 - MEMORY)
    return straight_through(layer, gradient)


def straight_through_magnitude(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """The mask's derivative in the magnitude of the score is one; in the score it is the sign of the score.

    In latents: d|s|/ds * sign(base) * base * g, and sign(s) * sign(base) is the sign of the latent.
    """
    return gradient.mul_(layer.base).mul_(torch.sign(layer.latent, out=layer.weight))


def through_sigmoid(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """Times the derivative p (1 - p) of the probability; its constant factor does not move Adam."""
    p = probabilities(layer)
    return straight_through(layer, gradient).mul_(p).mul_(p.neg_().add_(1))


def times_probability(layer: MaskedWeight, gradient: Tensor) -> Tensor:
    """Times p, as in public tutorials."""
    return straight_through(layer, gradient).mul_(probabilities(layer))
