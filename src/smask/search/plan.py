"""How a search is decoupled, and what does not go together with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ArgumentError, UnsupportedError
from .blocks import Block, cut
from .guides import DECOUPLINGS, Decoupling
from .ranks import Ranks
from .weights import Maskable

OFF = "off"


@dataclass(frozen=True, eq=False)
class Plan:
    """How a search is decoupled.

    Attributes:
        decoupling: The way.
        blocks: Of the net.
        labels: Whether guides may see labels.
    """

    decoupling: Decoupling
    blocks: tuple[Block, ...]
    labels: bool

    @property
    def settings(self) -> dict[str, object]:
        """What decides the result."""
        return {"way": self.decoupling.name, "blocks": len(self.blocks), "labels": self.labels}


def check_options(
    way: str,
    blocks: int | None,
    labels: bool,
    *,
    accumulate: int = 1,
    precision: str = "fp32",
    shard: bool = False,
    size: int = 1,
    device: torch.device | None = None,
) -> None:
    """Refuses what cannot go together before anything is read or built.

    Raises:
        UnsupportedError: An unknown way.
        ArgumentError: Options of another search, as many processes as are not needed or too few.
    """
    if way != OFF and way not in DECOUPLINGS:
        raise UnsupportedError("decouple", way, (OFF, *DECOUPLINGS))
    if way == OFF and blocks is not None:
        raise ArgumentError("blocks", blocks, "decouple dni or local beside it")
    if labels and way != "dni":
        raise ArgumentError("dni_labels", labels, "decouple dni beside it")
    if way == OFF:
        return
    if blocks is not None and blocks < 2:
        raise ArgumentError("blocks", blocks, "2 or more")
    if shard:
        raise ArgumentError("shard", shard, "no decoupled search, whose processes have a block each")
    if accumulate > 1:
        raise ArgumentError("accumulate", accumulate, "1 in a decoupled search, whose blocks learn from every batch")
    if precision == "fp16":
        raise ArgumentError("precision", precision, "fp32 or bf16 in a decoupled search, whose losses are not scaled")
    if size > 1 and blocks is not None and size != blocks:
        raise ArgumentError("blocks", blocks, f"{size}, a block for each of {size} processes, or one process for all")
    if size > 1 and device is not None and device.type != "cpu":
        raise ArgumentError("device", str(device), "cpu, where blocks have a process each")


def planned(
    way: str, model: nn.Module, weights: Mapping[str, Maskable], *, blocks: int | None, labels: bool, ranks: Ranks
) -> Plan | None:
    """The plan of a decoupled search, None where ``way`` is ``off``.

    Raises:
        ArgumentError: A net that cannot be cut, or not in so many blocks.
    """
    if way == OFF:
        return None
    n_blocks = blocks if blocks is not None or ranks.size == 1 else ranks.size
    return Plan(DECOUPLINGS[way], cut(model, weights, n_blocks), labels)
