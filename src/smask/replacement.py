"""Layers of a model replaced by packed ones, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import nn

from .bases import SIGNS
from .coded import CodedTensor
from .modules import PackedConv2d, PackedEmbedding, PackedLayer, PackedLinear
from .recipe import ATTRIBUTE, attach, recipe_of

Packed: TypeAlias = PackedLinear | PackedConv2d | PackedEmbedding
# ``auto`` packs layers of at least as many weights: smaller ones are faster dense.
N_AUTO_WEIGHTS = 1 << 20
LAYERS: Mapping[type[nn.Module], Any] = {layer.kind: layer for layer in (PackedLinear, PackedConv2d, PackedEmbedding)}


def packed_layers(model: nn.Module) -> dict[str, Packed]:
    """Packed layers of a model by the state-dict names of the weights that they stand for, one perhaps by several."""
    modules = model.named_modules(remove_duplicate=False)
    return {_weight_of(path): module for path, module in modules if isinstance(module, Packed)}


def unpackable(model: nn.Module, coded: Mapping[str, CodedTensor]) -> dict[str, str]:
    """Coded tensors that no packed layer can hold, by name, and why."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {_weight_of(path): (module, path.rpartition(".")[0]) for path, module in modules.items()}
    obstacles = {}
    for name, tensor in coded.items():
        layer, around = owners.get(name, (None, ""))
        if reason := _obstacle(layer, modules[around], tensor):
            obstacles[name] = reason
    # Weights of several names are packed under all of them or none: dense under one they would be held twice.
    shared = {coded[name]: f"the weights of {name!r}: {reason}" for name, reason in obstacles.items()}
    return obstacles | {
        name: shared[tensor] for name, tensor in coded.items() if tensor in shared and name not in obstacles
    }


def pack_layers(
    model: nn.Module, coded: Mapping[str, CodedTensor], seed: int, *, regenerate_signs: bool = False
) -> nn.Module:
    """Replaces layers of a model by packed ones, in place: a layer of several names by one.

    Args:
        model: Its coded weights may be on the ``meta`` device; biases are taken over.
        coded: Weights to pack, by state-dict name, none of them :func:`unpackable`.
        seed: Seed of the file.
        regenerate_signs: Make signs anew at every call instead of holding them.

    Returns:
        The model, or its packed replacement where the model itself is a layer to pack.
    """
    made, ties = dict[tuple[nn.Module, CodedTensor], Packed](), dict[Any, object]()
    for name, tensor in coded.items():
        path = _path_of(name)
        layer = model.get_submodule(path)
        if isinstance(layer, PackedLayer):  # in a module that has another name too
            continue
        if (layer, tensor) not in made:
            packed = LAYERS[type(layer)].of(layer, tensor, seed, regenerate_signs=regenerate_signs)
            packed.tie = ties.setdefault(layer.weight, packed.tie)
            made[layer, tensor] = packed.train(layer.training)
        if not path:
            return made[layer, tensor]
        model.set_submodule(path, made[layer, tensor], strict=True)
    return model


def materialize(model: nn.Module) -> nn.Module:
    """Replaces all packed layers of a model by dense ones, in place; the model can be saved again afterwards.

    Parameters that were one before layers were packed are one again, unless other bits were loaded into one of them.

    Returns:
        The model, or its dense replacement where the model itself is a packed layer.
    """
    layers, dense, coded = packed_layers(model), dict[Packed, nn.Module](), dict[str, CodedTensor]()
    recipe = None if not layers or model in layers.values() else recipe_of(model)
    for name, module in layers.items():
        if module not in dense:
            dense[module] = module.materialize()
            alike = [other for other in dense if other is not module and _same_weights(module, other)]
            if not alike:  # a file has weights once, under the first of their names
                coded[name] = module.coded()
            for other in alike:
                if other.tie is module.tie:
                    dense[module].weight = dense[other].weight
        if module is model:
            model, recipe = dense[module], getattr(model, ATTRIBUTE, None)
        else:
            model.set_submodule(_path_of(name), dense[module], strict=True)
    if recipe is not None:
        attach(model, replace(recipe, coded=dict(recipe.coded) | coded))
    return model


def _same_weights(one: Packed, other: Packed) -> bool:
    forms = [(layer.form.shape, layer.form.dtype, layer.planes.device) for layer in (one, other)]
    ours, theirs = (dict(layer.named_buffers()) for layer in (one, other))
    alike = forms[0] == forms[1] and ours.keys() == theirs.keys()
    return alike and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def _weight_of(path: str) -> str:
    return f"{path}.weight".lstrip(".")


def _path_of(weight: str) -> str:
    return weight.removesuffix("weight").removesuffix(".")


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
