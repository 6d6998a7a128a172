"""Options of what stays a float beside the masks: scales, biases, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def add(option: Callable[..., Any]) -> None:
    """Adds the options to a command."""
    option("--scale", default="channel", metavar="S", help="one scale a channel or a tensor (default %(default)s)")
    option("--no-learn-scale", action="store_true", help="keep the scales of the initialisation, over a checkpoint 1")
    option("--no-learn-bias", action="store_true", help="no biases in masked layers, over a checkpoint its own")
    option(
        "--float-dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="of scales, biases, norms (default %(default)s)",
    )
    option(
        "--float-bits", type=int, default=4, metavar="N",
        help="mantissa bits of scales and biases of masked layers, 1 to 22, biases and statistics of norms have one "
        "more (default %(default)s)",
    )  # fmt: skip
    option(
        "--norm-statistics", action="store_true",
        help="batch norms keep mean and variance, for a model to be trained further; else weights and biases of norms "
        "say the same in fewer bytes",
    )  # fmt: skip
