"""Options of a search whose blocks do not wait for each other."""

from __future__ import annotations

import argparse
from typing import Any

from .processes import Processes


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


def words(arguments: argparse.Namespace, joined: Processes) -> str:
    """How the work is shared out, as the end of a sentence."""
    alone = joined.size == 1
    if arguments.decouple == "off":
        return "" if alone else f", shared by {joined.size} processes"
    return f", decoupled ({arguments.decouple})" + ("" if alone else f", a block on each of {joined.size} processes")


def fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the result says of it, nothing where blocks are not decoupled."""
    if arguments.decouple == "off":
        return {}
    return {"decouple": arguments.decouple, "blocks": arguments.blocks, "dni_labels": arguments.dni_labels}
