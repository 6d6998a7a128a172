"""Layers of a model replaced by packed ones, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from .bases import SIGNS
from .coded import CodedTensor
from .modules import PackedConv2d, PackedEmbedding, PackedLayer, PackedLinear
from .recipe import attach, recipe_of

Packed: TypeAlias = PackedLinear | PackedConv2d | PackedEmbedding
# ``auto`` packs layers of at least as many weights: smaller ones are faster dense.
N_AUTO_WEIGHTS = 1 << 20
LAYERS: Mapping[type[nn.Module], Any] = {layer.kind: layer for layer in (PackedLinear, PackedConv2d, PackedEmbedding)}


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """Packed layers of a model by the state-dict names of the weights that they stand for."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, PackedLayer)}
    return {f"{path}.weight".lstrip("."): module for path, module in found.items()}


def unpackable(model: nn.Module, coded: Mapping[str, CodedTensor]) -> dict[str, str]:
    """Coded tensors that no packed layer can hold, by name, and why."""
    modules = dict(model.named_modules())
    owners = {f"{path}.weight".lstrip("."): (module, path.rpartition(".")[0]) for path, module in modules.items()}
    obstacles = {}
    for name, tensor in coded.items():
        layer, around = owners.get(name, (None, ""))
        if reason := _obstacle(layer, modules[around], tensor):
            obstacles[name] = reason
    return obstacles


def pack_layers(
    model: nn.Module, coded: Mapping[str, CodedTensor], seed: int, *, regenerate_signs: bool = False
) -> None:
    """Replaces layers of a model by packed ones, in place.

    Args:
        model: Its coded weights may be on the ``meta`` device; biases are taken over.
        coded: Weights to pack, by state-dict name, none of them :func:`unpackable`.
        seed: Seed of the file.
        regenerate_signs: Make signs anew at every call instead of holding them.
    """
    for name, tensor in coded.items():
        path = name.removesuffix("weight").removesuffix(".")
        layer = model.get_submodule(path)
        packed = LAYERS[type(layer)].of(layer, tensor, seed, regenerate_signs=regenerate_signs)
        model.set_submodule(path, packed.train(layer.training), strict=True)


def materialize(model: nn.Module) -> nn.Module:
    """Replaces all packed layers of a model by dense ones, in place; the model can be saved again afterwards.

    Returns:
        The model, or its dense replacement where the model itself is a packed layer.
    """
    packed = {path: module for path, module in model.named_modules() if isinstance(module, Packed)}
    coded = {f"{path}.weight".lstrip("."): module.coded() for path, module in packed.items()}
    for path, module in packed.items():
        if not path:
            return module.materialize()
        model.set_submodule(path, module.materialize(), strict=True)
    if packed:
        recipe = recipe_of(model)
        attach(model, replace(recipe, coded=dict(recipe.coded) | coded))
    return model


def _obstacle(layer: nn.Module | None, around: nn.Module, coded: CodedTensor) -> str:
    if layer is None or type(layer) not in LAYERS:
        return f"no packed layer for {'a tensor that is no weight' if layer is None else type(layer).__name__}"
    if isinstance(around, nn.TransformerEncoderLayer):  # in evaluation mode, which nested tensors rely on
        return f"a weight that {type(around).__name__} reads itself"
    if coded.base not in SIGNS:
        return f"base {coded.base}"
    if coded.origin is not None:
        return "levels over another checkpoint"
    if len(coded.planes) > 7:
        return f"{len(coded.planes)} planes"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return "an embedding with max_norm, scale_grad_by_freq or sparse"
    return ""
