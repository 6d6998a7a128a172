"""Checkpoints as networks that run: an architecture or a module, under the names that a checkpoint has."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import architectures
from ..checkpoints import Checkpoint, Entry, Source, open_checkpoint
from ..errors import ArchitectureError, ArgumentError
from ..integrity import NAME_OF_DTYPE
from ..ties import tied_parameters

COUNTER = ".num_batches_tracked"


def model_of(source: Source, arch: Mapping[str, Any], *, key: str | None = None) -> nn.Module:
    """The architecture with the tensors of a checkpoint, before any conversion.

    Raises:
        CheckpointError: As for :func:`convert_checkpoint`.
        ArchitectureError: The checkpoint does not fit the architecture.
    """
    checkpoint = open_checkpoint(source, key=key)
    wrapped = wrapped_in(arch, checkpoint.prefix)
    checkpoint = completed(checkpoint, wrapped)
    model = architectures.build(wrapped)
    model.load_state_dict({entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries})
    return model


def network_of(
    checkpoint: Checkpoint, module: object, arch: Mapping[str, Any] | None, *, wanted: str = "calibrate"
) -> nn.Module:
    """A network of its own with the tensors of the checkpoint, under the names that these have there.

    Args:
        checkpoint: Its tensors.
        module: The network, where there is no architecture.
        arch: The architecture, wrapped as the names are.
        wanted: What the network is for, an argument of the caller.

    Raises:
        ArchitectureError: The checkpoint does not fit.
        ArgumentError: Neither a module nor an architecture.
    """
    if arch is not None:
        network = architectures.build(arch)
    elif isinstance(module, nn.Module):
        network = _copy_of(module).cpu()
        for name in reversed(checkpoint.prefix.rstrip(".").split(".") if checkpoint.prefix else []):
            if not any(key.startswith(f"{name}.") for key in network.state_dict()):
                network = nn.Sequential(OrderedDict({name: network}))
    else:
        got = "inputs" if wanted == "calibrate" else True
        raise ArgumentError(wanted, got, "arch or model beside it: a checkpoint does not say what to run")
    have, want = {entry.name for entry in checkpoint.entries}, network.state_dict()
    left_out = {*_tied(network, have), *(name for name in want if name.endswith(COUNTER))}
    differences = [f"{name} is not in the checkpoint" for name in want if name not in have | left_out]
    differences += [f"{name} is not in the model" for name in have if name not in want]
    state = {entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries if not differences}
    differences += [
        f"{name} is {list(tensor.shape)} in the checkpoint, {list(want[name].shape)} in the model"
        for name, tensor in state.items() if tensor.shape != want[name].shape
    ]  # fmt: skip
    if differences:
        raise ArchitectureError(tuple(sorted(differences)))
    network.load_state_dict(state, strict=False)
    return network


def _copy_of(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise ArchitectureError((f"the model cannot be copied: {str(error).splitlines()[0]}",)) from None


def _tied(network: nn.Module, have: Collection[str]) -> dict[str, str]:
    """Parameters that a checkpoint has under another name alone, each with that: tied ones are often saved once."""
    return {
        name: next(other for other in names if other in have)
        for names in tied_parameters(network) if any(other in have for other in names)
        for name in names if name not in have
    }  # fmt: skip


def wrapped_in(arch: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The architecture inside of stacks that give its names the prefix of a wrapper."""
    layers = list(arch.get("layers", ()))
    for name in reversed(prefix.rstrip(".").split(".") if prefix else []):
        layers = [{"op": "stack", "name": name, "layers": layers}]
    return {**arch, "layers": layers}


def completed(checkpoint: Checkpoint, arch: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with the counters that old batch norms lack and both names of tied parameters.

    Raises:
        ArchitectureError: It does not fit even so.
    """
    network = architectures.build(arch, "meta")
    state = network.state_dict()
    want = {name: (tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype]) for name, tensor in state.items()}
    got = {entry.name: (entry.shape, entry.dtype) for entry in checkpoint.entries}
    tied = _tied(network, got)
    added = [name for name in want if name.endswith(COUNTER) and name not in got]
    got |= {name: got[other] for name, other in tied.items()}
    differences = [f"{name} is not in the checkpoint" for name in want if name not in got and name not in added]
    differences += [f"{name} is not in the architecture" for name in got if name not in want]
    differences += [
        f"{name} is {got[name][1]} {list(got[name][0])} in the checkpoint, {shape[1]} {list(shape[0])} in the net"
        for name, shape in want.items() if name in got and got[name] != shape
    ]  # fmt: skip
    if differences:
        raise ArchitectureError(tuple(differences))

    def read(name: str) -> Tensor:
        return torch.tensor(0) if name in added else checkpoint.read(tied.get(name, name))

    entries = (
        *checkpoint.entries,
        *(Entry(name, *got[name], alias_of=other) for name, other in tied.items()),
        *(Entry(name, (), "I64") for name in added),
    )
    return replace(checkpoint, entries=entries, read=read)
