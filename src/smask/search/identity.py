"""What is known again of arguments that are no numbers: batches by what they say of themselves, functions by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from typing import Any

from torch import Tensor

from ..errors import ArgumentError


def n_batches_of(batches: object, accumulate: int = 1) -> int:
    """Batches of an epoch that are used: as many as make whole steps.

    Raises:
        ArgumentError: None, or fewer than a step takes.
    """
    if accumulate < 1:
        raise ArgumentError("accumulate", accumulate, "1 or more batches")
    try:
        n_batches = len(batches) if isinstance(batches, Sized) else 0
    except TypeError:  # a loader over a data set that has none
        n_batches = 0
    if not n_batches:
        raise ArgumentError("batches", type(batches).__name__, "an iterable that has a length and is not empty")
    if n_batches < accumulate:
        raise ArgumentError("accumulate", accumulate, f"at most the {n_batches} batches of an epoch")
    return n_batches // accumulate * accumulate


def name_of(loss: Callable[[Any, Any], Tensor]) -> str:
    """A name of a function that is the same in another process."""
    if isinstance(loss, functools.partial):
        return f"{name_of(loss.func)}{loss.args}{sorted(loss.keywords.items())}"
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def fingerprint_of(batches: object) -> str | None:
    """What the batches say that they depend on; two of the same fingerprint give the same batches."""
    own = getattr(batches, "fingerprint", None)
    return str(own()) if callable(own) else None
