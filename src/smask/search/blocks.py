"""A chain of modules cut in blocks, each of which can be trained by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError, ArgumentError
from .nested import called
from .weights import Maskable


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring modules of a chain.

    Attributes:
        modules: In order.
        masked: State-dict names of the masked weights in it.
        names: State-dict names of its parameters and buffers.
    """

    modules: nn.Sequential
    masked: tuple[str, ...]
    names: frozenset[str]


def cut(model: nn.Module, weights: Mapping[str, Maskable], n_blocks: int | None) -> tuple[Block, ...]:
    """Cuts a ``Sequential``; those inside it count as their children.

    A block begins at a module with masked weights and goes up to the next that begins one; what comes before the first
    belongs to it. By default every such module begins one. Of fewer blocks the i-th of n ends where the masked weights
    up to there are nearest to i/n of all, so that blocks have about as much to do.

    Args:
        model: The chain.
        weights: Its masked weights.
        n_blocks: Two or more; None for as many as there are modules with masked weights.

    Raises:
        ArgumentError: No chain, more blocks than modules with masked weights, fewer than two of these, a parameter or
            buffer that two blocks have.
    """
    if type(model) is not nn.Sequential:
        raise ArgumentError(
            "decouple", type(model).__name__, "a chain of modules (torch.nn.Sequential), which alone can be cut"
        )
    chain = tuple(_links(model))
    masked = {id(one.weight): name for name, one in weights.items()}
    sizes = [sum(p.numel() for p in module.parameters() if id(p) in masked) for module in chain]
    starts = [place for place, size in enumerate(sizes) if size]
    if len(starts) < 2:
        raise ArgumentError("decouple", f"{len(starts)} module with masked weights", "two or more, to be cut between")
    if n_blocks is not None and not 2 <= n_blocks <= len(starts):
        raise ArgumentError("blocks", n_blocks, f"2 to {len(starts)}, as many as modules with masked weights")
    firsts = [0, *(starts[link] for link in _shared_out([sizes[place] for place in starts], n_blocks or len(starts)))]
    parts = [chain[first:last] for first, last in zip(firsts, [*firsts[1:], len(chain)], strict=True)]
    first_names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    blocks, homes = [], dict[str, int]()
    for place, part in enumerate(parts):
        modules = nn.Sequential(*part)
        names = {first_names[id(tensor)] for tensor in (*modules.parameters(), *modules.buffers())}
        for name in sorted(names):
            if homes.setdefault(name, place) != place:
                raise ArgumentError("decouple", f"{name}, which two blocks share", "blocks that share no weights")
        own = tuple(masked[id(p)] for p in modules.parameters() if id(p) in masked)
        blocks.append(Block(modules, own, frozenset(names)))
    return tuple(blocks)


@torch.no_grad()
def shapes_between(blocks: Sequence[Block], x: Any) -> tuple[torch.Size, ...]:
    """Shapes of what each block gives for a batch; nothing learns and no norm remembers.

    Raises:
        ArchitectureError: A block but the last gives something else than one tensor of floats, inputs first.
    """
    modes = [(module, module.training) for block in blocks for module in block.modules.modules()]
    shapes, value = [], x
    try:
        for place, block in enumerate(blocks):
            block.modules.eval()
            value = called(block.modules, value)
            if not (isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1):
                raise ArchitectureError((f"block {place + 1} of {len(blocks)} gives no tensor of floats [N, ...]",))
            shapes.append(value.shape)
    finally:
        for module, training in modes:
            module.training = training
    return tuple(shapes)


def _links(chain: nn.Sequential) -> Iterator[nn.Module]:
    for module in chain:
        if type(module) is nn.Sequential:
            yield from _links(module)
        else:
            yield module


def _shared_out(sizes: Collection[int], n_blocks: int) -> Iterator[int]:
    """At which links blocks begin, but for the first."""
    sums, total = [0], sum(sizes)
    for size in sizes:
        sums.append(sums[-1] + size)
    link = 0
    for block in range(1, n_blocks):
        possible = range(link + 1, len(sizes) - (n_blocks - block) + 1)
        link = min(possible, key=lambda at: abs(sums[at] * n_blocks - total * block))
        yield link
