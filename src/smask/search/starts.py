"""Searches over a seed that begin as a trained net: its weights become scores, and what is not masked is as there.

A latent is in the units of a score what a trained weight is: its sign says whether the base has the right one, its
magnitude how much it is wanted (:mod:`smask.search.scores`). So latents begin as the weights, as far from each other as
those that are drawn are in the mean, and scales as those that bring the first masked weights nearest to the trained
ones. Where signs are searched too, half of the weights kept, on ramps, are the trained ones cut off at twice their
median. That magnitudes of trained weights say what to keep is from Han et al., "Learning both Weights and Connections
for Efficient Neural Networks", NeurIPS 2015; the file needs none of them, only the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ramps import place_ramps
from .scores import MaskedWeight


@torch.no_grad()
def begin_as(
    layer: MaskedWeight, weights: Tensor, *, spread: float, density: float, alike: bool = False
) -> None:  # fmt: skip
    """Latents and scales that are nearest to trained weights.

    Args:
        layer: Over a seed; its scale and latents are overwritten.
        weights: Finite, floating [C, ...].
        spread: Mean magnitude of latents.
        density: What is kept first.
        alike: Whether all channels have the scale that is best for all.
    """
    method = layer.method
    own = layer.part(weights).to(layer.base.device, torch.float32)
    scores = own * layer.sign
    if method.by_magnitude and not method.flips:  # a magnitude that is kept has the sign of the base, whatever its own
        scores.clamp_(min=0.0)
    mean = float(layer.total(own.abs().sum())) / layer.n_weights
    if not mean:
        return
    torch.mul(scores, layer.sign, out=layer.latent.data).mul_(spread / mean)
    method.balance({"": layer}, {"": density})
    place_ramps((layer,), 1.0)
    if method.draws:
        layer.seed_draws(0)
    layer.grade()
    masked = method.masked(layer)
    products, squares = masked * own, masked.square()
    of_all = [float(layer.total(x.sum())) for x in (products, squares)]
    whole = of_all[0] / of_all[1] if min(of_all) > 0 else float(layer.scale.mean())
    if layer.per_channel and not alike:
        # A channel that keeps nothing yet, or what is no nearer than nothing, has that of all.
        products, squares = (x.sum([*range(1, own.dim())], keepdim=True) for x in (products, squares))
        layer.scale.copy_(torch.where(products > 0, products / squares, whole))
    else:
        layer.scale.fill_(whole)
