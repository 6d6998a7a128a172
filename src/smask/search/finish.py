"""From a finished search to a model that is a file: coded tensors, rounded floats, the recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..recipe import Recipe, attach
from ..reconstruction import CodedTensor, reconstruct
from .scores import MaskedWeight


def coded_tensors(
    layers: Mapping[str, MaskedWeight], levels: Mapping[str, Tensor], float_dtype: torch.dtype
) -> dict[str, CodedTensor]:
    """Levels and rounded scales in the form of the file."""
    return {
        name: CodedTensor(
            shape=tuple(layer.weight.shape),
            stream=layer.stream,
            planes=tuple(_packed(levels[name] >> plane & 1 != 0) for plane in reversed(range(layer.method.n_planes))),
            scale=rounded(layer.scale.detach().flatten().cpu(), float_dtype),
            base=layer.kind,
            flip=_packed(layer.flips() & (levels[name] != 0)) if layer.method.flips else None,
        )
        for name, layer in layers.items()
    }


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))


def finished_model(original: nn.Module, trained: nn.Module, recipe: Recipe, float_dtype: torch.dtype) -> nn.Module:
    """A copy of the original with reconstructed weights and rounded floats, in the original order of its state."""
    found, state = trained.state_dict(), {}
    for name, tensor in original.state_dict().items():
        if name in recipe.coded:
            state[name] = reconstruct(recipe.coded[name], recipe.seed).to(tensor.dtype)
        else:
            value = found[name].cpu()
            state[name] = rounded(value, float_dtype) if value.is_floating_point() else value
    model = copy.deepcopy(original)
    model.load_state_dict(state, strict=True, assign=True)
    attach(model, recipe)
    return model.cpu().eval()


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of a narrower dtype, in the dtype they had."""
    return tensor.to(dtype).to(tensor.dtype)
