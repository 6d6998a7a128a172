"""From a finished search to a model that is a file: coded tensors, rounded floats, the recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..coded import SMALLEST_SCALE, CodedTensor
from ..overlays import equal_bits
from ..recipe import Recipe, attach
from ..reconstruction import reconstruct
from .scores import MaskedWeight
from .snapshots import copied
from .statistics import folded

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
# Mantissa bits that biases and statistics of norms keep beyond those of biases of masked layers. Five instead of the
# seven of bfloat16 take 1.3 % off a ResNet-18 of 67 kB (three searches), 2.1 % off a ResNet-20 of 20 kB; losses changed
# by -0.002 to -0.001. Four cost that ResNet-20 0.013, and weights of norms two ResNet-18 0.005 with five.
N_MORE_IN_NORMS = 1


@dataclass(frozen=True)
class Floats:
    """How exactly floats are kept.

    Attributes:
        dtype: Of all.
        n_bits: Mantissa bits that scales and biases of masked layers keep, biases and statistics of norms one more, or
            None for all that the dtype has. Zero bits at the end of a mantissa cost nothing in the file.
        statistics: Whether batch norms keep theirs, else they lie in weights and biases, see
            :func:`smask.search.statistics.folded`.
    """

    dtype: torch.dtype
    n_bits: int | None
    statistics: bool = False

    def fine(self, tensor: Tensor) -> Tensor:
        """Values of the narrower dtype, in the dtype they had."""
        return tensor.to(self.dtype).to(tensor.dtype)

    def coarse(self, tensor: Tensor, n_more: int = 0) -> Tensor:
        """The same with a short mantissa, of so many bits more: to nearest, away from zero in the middle."""
        if self.n_bits is None or self.n_bits + n_more >= 23 or tensor.dtype != torch.float32:
            return self.fine(tensor)
        n_dropped = 23 - self.n_bits - n_more
        bits = tensor.contiguous().view(torch.int32)
        short = (bits + (1 << n_dropped - 1)).bitwise_and_(-1 << n_dropped).view(torch.float32)
        return self.fine(torch.where(short.isfinite(), short, tensor))


def coded_tensors(
    layers: Mapping[str, MaskedWeight], levels: Mapping[str, Tensor], floats: Floats
) -> dict[str, CodedTensor]:
    """Levels and rounded scales in the form of the file; the scale of a channel that keeps no weight is zero."""

    def scales(layer: MaskedWeight, levels: Tensor) -> Tensor:
        scale = _within(floats.coarse(layer.scales().flatten().cpu()))
        return scale.masked_fill(layer.silent(levels), 0.0) if layer.per_channel else scale

    return {
        name: CodedTensor(
            shape=tuple(layer.shape),
            stream=0 if layer.origin is not None else layer.stream,
            planes=tuple(_packed(levels[name] >> plane & 1 != 0) for plane in reversed(range(layer.method.n_planes))),
            scale=scales(layer, levels[name]),
            base=layer.kind,
            flip=_packed(layer.flips() & (levels[name] != 0)) if layer.method.flips else None,
            of=None if layer.origin is None else "",
            origin=layer.origin,
        )
        for name, layer in layers.items()
    }


def _within(scale: Tensor) -> Tensor:
    """Scales of the format: one on its way through zero may be smaller than the smallest, and is then zero."""
    return torch.where(scale.abs() < SMALLEST_SCALE, 0.0, scale)


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))


def finished_model(
    original: nn.Module,
    trained: nn.Module,
    recipe: Recipe,
    floats: Floats,
    biases: Collection[str],
    silent: Mapping[str, Tensor],
) -> nn.Module:
    """A copy of the original with reconstructed weights and rounded floats, in the original order of its state.

    What is still as in the checkpoint that the model is over is not rounded: it costs nothing.

    Args:
        original: As it was given.
        trained: The search's copy of it.
        recipe: Of the masks found.
        floats: How exactly floats are kept.
        biases: State-dict names of the biases of masked layers.
        silent: Those of which some are zero, with a mask that says which, bool [C].
    """
    found, state, of_norms = trained.state_dict(), dict[str, Tensor](), _of_norms(original)
    if not floats.statistics:
        found |= folded(trained, but=recipe.origins)
    first: dict[int, str] = {}
    for name, tensor in original.state_dict(keep_vars=True).items():
        earlier = first.setdefault(id(tensor), name)
        if earlier != name:  # one tensor of two names
            state[name] = state[earlier]
        elif name in recipe.coded:
            state[name] = reconstruct(recipe.coded[name], recipe.seed).to(tensor.dtype)
        else:
            value = found[name].cpu()
            value = value.masked_fill(silent[name], 0.0) if name in silent else value
            over = recipe.origins.get(name)
            if value.is_floating_point() and not (over and equal_bits(value, over[1])):
                if name in biases or name in of_norms:
                    value = floats.coarse(value, 0 if name in biases else N_MORE_IN_NORMS)
                else:
                    value = floats.fine(value)
            state[name] = value
    model = copied(original)
    model.load_state_dict(state, strict=True)  # copies, so that what is shared stays shared
    attach(model, recipe)
    return model.cpu().eval()


def _of_norms(model: nn.Module) -> frozenset[str]:
    """State-dict names of biases and statistics of norms."""
    norms = [one for one in model.named_modules(remove_duplicate=False) if isinstance(one[1], NORMS)]
    own = (f"{path}.{name}" if path else name for path, norm in norms for name in norm.state_dict())
    return frozenset(name for name in own if name.rpartition(".")[2] != "weight")
