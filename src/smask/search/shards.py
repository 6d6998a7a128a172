"""Rows of masked weights, with all that belongs to them, spread over the ranks: for models too large for one device.

Torch's ``fully_shard`` (FSDP2; Zhao et al., "PyTorch FSDP", VLDB 2023, section 3) keeps the rows of a weight on as many
ranks as there are, gathers them for the pass of a block and scatters the sums of its gradients. Masks are written into
the rows that a rank has, and its scores, base, moments and gradients are of these rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .ranks import Ranks
from .rows import Rows
from .weights import Maskable


def share_rows(
    model: nn.Module, weights: Mapping[str, Maskable], ranks: Ranks, device: torch.device
) -> tuple[dict[str, Maskable], dict[str, Rows]]:
    """Spreads masked weights of a model on the CPU over the ranks; everything else goes to the device whole.

    Gathered at a time is a block: a child of a ``Sequential`` or a ``ModuleList``, or what is left of the model.

    Args:
        model: Changed in place; its masked parameters are new ones.
        weights: Its masked parameters.
        ranks: More than one.
        device: Of this rank.

    Returns:
        The new parameters, and the rows of each that this rank has.

    Raises:
        ArgumentError: One rank only.
    """
    if ranks.group is None or ranks.size == 1:
        raise ArgumentError("shard", True, "a group of two or more ranks (torchrun --nproc-per-node)")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    masked = {id(one.weight) for one in weights.values()}
    others = {parameter for parameter in model.parameters() if id(parameter) not in masked}
    for tensor in (*others, *model.buffers()):
        tensor.data = tensor.data.to(device)
    mesh = DeviceMesh.from_group(ranks.group, device.type)
    for block in [*_blocks(model, masked), model]:
        sharded: Any = fully_shard(block, mesh=mesh, ignored_params=others)
        # Losses have the weight of their inputs already: sums, not means, and by no operation that only NCCL has.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    rows = {name: _rows(one.weight.shape[0], ranks) for name, one in weights.items()}
    return {name: replace(one, weight=model.get_parameter(name)) for name, one in weights.items()}, rows


def _rows(n: int, ranks: Ranks) -> Rows:
    """As ``torch.chunk`` shares them."""
    n_each = -(-n // ranks.size)
    return Rows(min(n, ranks.rank * n_each), min(n, (ranks.rank + 1) * n_each), ranks)


def _blocks(model: nn.Module, masked: set[int]) -> Iterator[nn.Module]:
    """Parts of the model with masked parameters that no other part has."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        for child_name, child in module.named_children() if isinstance(module, nn.Sequential | nn.ModuleList) else ():
            prefix = f"{path}.{child_name}.".removeprefix(".")
            own = [id(p) for p in child.parameters() if id(p) in masked]
            alone = all(name.startswith(prefix) for p in own for name in names[p])
            if own and alone and not prefix.startswith(inside):
                inside += (prefix,)
                yield child
