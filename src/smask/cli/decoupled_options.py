"""Options of a search whose blocks do not wait for each other."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .processes import Processes

if TYPE_CHECKING:
    from torch import nn


def add(option: Any) -> None:
    """Adds the options."""
    option(
        "--decouple", default="off", metavar="WAY",
        help="dni: blocks of the net learn from synthetic gradients; local: from a classifier of their own; under "
        "torchrun a block for each process, all at work at once (default %(default)s)",
    )  # fmt: skip
    option(
        "--blocks", type=int, metavar="N",
        help="blocks of about equal numbers of weights (default: one for each process, else for each masked layer)",
    )  # fmt: skip
    option("--dni-labels", action="store_true", help="synthetic gradients may depend on the label")


def check(arguments: argparse.Namespace) -> None:
    """What needs no data is refused before any is read.

    Raises:
        UnsupportedError, ArgumentError: As :func:`smask.search.plan.check_options`.
    """
    if arguments.decouple == "off" and arguments.blocks is None and not arguments.dni_labels:
        return
    from ..search.plan import check_options

    check_options(
        arguments.decouple, arguments.blocks, arguments.dni_labels, accumulate=arguments.accumulate,
        precision=arguments.precision, shard=arguments.shard,
    )  # fmt: skip


def n_blocks_of(arguments: argparse.Namespace, net: nn.Module, joined: Processes) -> int | None:
    """In how many blocks a net is cut, None if it is not.

    Raises:
        ArgumentError: It cannot be cut, or not in as many as there are processes.
    """
    from ..search.plan import check_options, planned
    from ..search.ranks import Ranks
    from ..search.weights import maskable

    way, blocks, labels = arguments.decouple, arguments.blocks, arguments.dni_labels
    check_options(way, blocks, labels, size=joined.size, device=joined.device)
    ranks = Ranks(joined.group, joined.device)
    plan = None if way == "off" else planned(way, net, maskable(net), blocks=blocks, labels=labels, ranks=ranks)
    return len(plan.blocks) if plan else None


def words(arguments: argparse.Namespace, n_blocks: int | None, joined: Processes) -> str:
    """How the work is shared out, as the end of a sentence."""
    alone = joined.size == 1
    if n_blocks is None:
        return "" if alone else f", shared by {joined.size} processes"
    return f", decoupled ({arguments.decouple}) in {n_blocks} blocks" + ("" if alone else ", a process each")


def fields(arguments: argparse.Namespace, n_blocks: int | None) -> dict[str, Any]:
    """What the result says of it, nothing where blocks are not decoupled."""
    if n_blocks is None:
        return {}
    return {"decouple": arguments.decouple, "blocks": n_blocks, "dni_labels": arguments.dni_labels}
