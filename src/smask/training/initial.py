"""Weights at the start: those that the seed gives, of a spread that suits their layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..bases import N_WEIGHTS_PER_WORD
from ..coded import CodedTensor
from ..errors import UnsupportedError
from ..reconstruction import reconstruct
from ..search.weights import Maskable, maskable, zero_biases

# Root of the mean square of each base.
UNIT_SPREADS = {"signed": 1.0, "uniform": 1 / math.sqrt(3), "normal": 1.0}


def he(one: Maskable) -> float:
    """He et al., "Delving Deep into Rectifiers" (2015), section 2.2: what a layer gives spreads as what it is given."""
    return math.sqrt(2 / max(1.0, one.fan_in))


def glorot(one: Maskable) -> float:
    """Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010), equation
    16: gradients too spread alike, as far as both can be had; ``torch.nn.init.xavier_normal_``."""
    n_outputs, n_inputs, *kernel = one.weight.shape
    return math.sqrt(2 / ((n_outputs + n_inputs) * max(1, math.prod(kernel))))


# Weights of a layer to the deviation of their initial values.
SPREADS: Mapping[str, Callable[[Maskable], float]] = {"he": he, "glorot": glorot}


@dataclass(frozen=True, eq=False)
class Origin:
    """The initial weights of one parameter, as a file says them.

    Attributes:
        shape: [C, ...].
        base: Kind of the base.
        stream: Of the seed.
        deviation: float32 [1] or [C]: root of the mean square of the weights, of all or of each channel.
    """

    shape: tuple[int, ...]
    base: str
    stream: int
    deviation: Tensor

    def coded(self, mask: Tensor | None = None, flip: Tensor | None = None) -> CodedTensor:
        """As a file holds it: under a mask, bool [C, ...], and with inverted signs where ``flip`` is, bool [C, ...]."""
        plane = torch.ones(self.shape, dtype=torch.bool) if mask is None else mask
        scale = (self.deviation / UNIT_SPREADS[self.base]).bfloat16().float()  # two bytes of the file
        return CodedTensor(
            self.shape, self.stream, (_packed(plane),), scale, base=self.base,
            flip=None if flip is None or not bool(flip.any()) else _packed(flip & plane),
        )  # fmt: skip

    def weights(self, seed: int) -> Tensor:
        """float32 [C, ...] on the CPU."""
        return reconstruct(self.coded(), seed)

    def fresh(self, n_streams: int) -> Origin:
        """Weights drawn anew: the stream after those of all ``n_streams`` parameters."""
        return replace(self, stream=self.stream + n_streams)


def origins_of(model: nn.Module, *, base: str = "normal", spread: str = "he") -> dict[str, Origin]:
    """Where the weights of each maskable parameter come from, by name; stream i of the seed is the i-th.

    Args:
        model: Any module.
        base: Kind of the base.
        spread: One of :data:`SPREADS`. Frankle and Carbin, and Zhou et al., begin with ``glorot``. It is smaller by up
            to sqrt(2) where layers shrink, by more where they grow: by 4.7 in the first of a convolutional net.

    Raises:
        ArgumentError: Nothing to mask.
        UnsupportedError: A base that no seed gives, an unknown spread.
    """
    for what, got, known in (("base", base, tuple(N_WEIGHTS_PER_WORD)), ("spread", spread, tuple(SPREADS))):
        if got not in known:
            raise UnsupportedError(what, got, known)
    origins = {}
    for stream, (name, one) in enumerate(maskable(model).items()):
        deviation = torch.full((one.weight.shape[0] if one.silent else 1,), SPREADS[spread](one))
        deviation[list(one.silent)] = 0  # rows of an embedding that are to be zero, and stay so without a gradient
        origins[name] = Origin(tuple(one.weight.shape), base, stream, deviation)
    return origins


def initial_model(model: nn.Module, origins: Mapping[str, Origin], *, seed: int) -> nn.Module:
    """A copy of a model with the weights of the seed, and with biases of zero beside them; all else as it was."""
    model = copy.deepcopy(model).cpu()
    zero_biases(model, maskable(model), learn=True)
    with torch.no_grad():
        for name, origin in origins.items():
            model.get_parameter(name).copy_(origin.weights(seed))
    return model


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.cpu().flatten().numpy(), bitorder="little"))
