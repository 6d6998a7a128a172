"""How a search begins: bases, scales and first scores of every weight that is masked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .methods import Method
from .pretrained import ordered_by_magnitude
from .rows import Rows
from .scores import MaskedWeight
from .starts import begin_as
from .weights import Maskable

# Where a density that falls begins.
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
    rows: Mapping[str, Rows] | None = None,
    origins: Mapping[str, Tensor] | None = None,
    initial: str | None = None,
    starts: Mapping[str, Tensor] | None = None,
    stride: float = 1.0,
) -> dict[str, MaskedWeight]:
    """Scores for every weight, or for the given rows of each.

    Scales begin as He's for what is kept: levels 1 to N, as many of each, have a mean square of (N + 1)(2 N + 1) / 6.

    Stream i of the seed is the base of the i-th, unless ``origins`` has a trained tensor for it; scores over those
    begin as ``initial`` says (:data:`smask.search.pretrained.INITIAL`), those over the seed where ``starts`` has a
    trained tensor as that. Distances between scores over the seed are
    multiplied by ``stride``, where the method has them in steps of Adam.

    Scales over the seed that a batch norm takes out again (``Maskable.normed``) are not learned, and one power of two
    for all channels: nothing to store, and the statistics of the norm are of exactly what the file has.
    """
    random = torch.Generator().manual_seed(seed % 2**63)
    layers, square = {}, (method.n_coats + 1) * (2 * method.n_coats + 1) / 6
    for stream, (name, one) in enumerate(weights.items()):
        weight, density = one.weight, densities[name]
        learned, origin = learn_scale and method.learns_scale, (origins or {}).get(name)
        first = max(START_DENSITY, density) if method.falls else density
        fan_in = one.fan_in * square * (first if learned else density)
        unheard = one.normed and learned and origin is None
        own_stride = stride if method.in_steps and origin is None else 1.0
        layer = MaskedWeight(
            weight, method, kind=base, seed=seed, stream=stream,
            per_channel=per_channel and method.learns_scale and (learned or origin is None),
            density=density, fan_in=fan_in, rows=rows[name] if rows else None, origin=origin, bias=one.bias,
            stride=own_stride,
        )  # fmt: skip
        with torch.no_grad():
            drawn = method.initial(weight.shape, random) * own_stride
            if origin is not None and initial == "magnitude":
                drawn = ordered_by_magnitude(drawn.abs() if method.by_magnitude else drawn, origin)
            layer.latent.mul_(layer.part(drawn).to(weight.device))
            if starts and name in starts:
                begin_as(layer, starts[name], spread=float(drawn.abs().mean()), density=first, alike=unheard)
            if unheard:
                layer.scale.data.view(torch.int32).bitwise_and_(-1 << 23)  # no mantissa: the power of two below
            if layer.per_channel and one.silent and origin is None:
                factors = torch.ones(weight.shape[0])
                factors[list(one.silent)] = 0  # where it stays: its gradient is that of weights over a scale of 0
                layer.scale.mul_(layer.part(factors).to(weight.device).view(layer.scale.shape))
        layer.scale.requires_grad_(learned and not unheard)
        weight.requires_grad_(True)
        layers[name] = layer
    return layers
