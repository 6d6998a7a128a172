"""Layers whose outputs a batch norm standardises: the length of their weights says nothing, and neither do biases."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def normed(model: nn.Module) -> frozenset[str]:
    """State-dict names of the modules, each of a weight and a bias, that only a batch norm hears.

    In training it takes mean and standard deviation out of each channel (Ioffe and Szegedy, "Batch Normalization", ICML
    2015, section 3.3, equation 3), so that a scale of a channel, or a bias, can be anything. What follows what is known
    where the passes of the model are a fixed sequence of modules; of any other model no layer is found.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return frozenset()
    # A copy that shares the parameters: forward is called once without numbers, and may leave something behind.
    own = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).train()
    for module in own.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    graph = _graph_of(own)
    if graph is None:
        return frozenset()
    modules = dict(own.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(parameter) for _, parameter in own.named_parameters(remove_duplicate=False))

    def module_of(node: Node) -> nn.Module | None:
        once = node.op == "call_module" and calls[node.target] == 1
        return modules[str(node.target)] if once else None

    found = set()
    for node in graph.nodes:
        layer, heard = module_of(node), [*node.users]
        if not isinstance(layer, LAYERS) or len(heard) != 1 or owners[id(layer.weight)] != 1:
            continue
        norm = module_of(heard[0])
        # One that is kept as it is in training, by a ``train`` of its own, has statistics that do not follow.
        if isinstance(norm, _BatchNorm) and norm.training and norm.num_features == len(layer.weight):
            found.add(str(node.target))
    return frozenset(found)


def _graph_of(model: nn.Module) -> Graph | None:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Tracer().trace(model)
        except Exception:  # whatever a forward raises that is no fixed sequence, or looks at numbers
            return None
