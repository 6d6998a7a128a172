"""What a search is told, refused before anything is read or built where it is out of range."""

from __future__ import annotations

import math
import operator
from typing import Any

from ..bases import N_WEIGHTS_PER_WORD
from ..errors import ArgumentError, UnsupportedError
from .choice import AUTO
from .methods import METHODS
from .pretrained import INITIAL

KEEPER = ("last", "due", "keep", "place")


def number_of(name: str, value: Any) -> float:
    """A plain number, also of one of numpy or torch.

    Raises:
        ArgumentError: It is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(name, value, "a number") from None


def whole_of(name: str, value: Any) -> int:
    """A plain whole number, also of one of numpy or torch.

    Raises:
        ArgumentError: It is none.
    """
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise ArgumentError(name, value, "a whole number") from None


def check_kinds(target: object, *, origin: object, start: object, checkpoints: object) -> None:
    """Raises ArgumentError where one is given that is not of its kind: a path in place of what is made of it, say."""
    for name, value, members, want in (
        ("target", target, ("n_bytes", "measure"), 'a target, such as smask.TargetSize("8kB")'),
        ("origin", origin, ("digest", "entry"), "a base, such as smask.open_base(path)"),
        ("start", start, ("digest", "entry"), "a base, such as smask.open_base(path)"),
        ("checkpoints", checkpoints, KEEPER, "what keeps them, such as smask.Checkpoints(folder)"),
    ):
        if value is not None and not all(hasattr(value, member) for member in members):
            raise ArgumentError(name, value, want)


def check_settings(
    method: str, base: str, scale: str, initial: str, epochs: int, lr: float, seed: int, hold: float, settle: float,
    float_bits: int | None, patience: int | None,
) -> None:  # fmt: skip
    """Arguments of :func:`smask.search.loop.find_masks` by themselves.

    Raises:
        UnsupportedError: An unknown method, base, scale or way to begin.
        ArgumentError: A number out of range.
    """
    for what, got, known in (
        ("method", method, (AUTO, *METHODS)),
        ("base", base, tuple(N_WEIGHTS_PER_WORD)),
        ("scale", scale, ("channel", "tensor")),
        ("initial", initial, INITIAL),
    ):
        if got not in known:
            raise UnsupportedError(what, got, known)
    if epochs < 1:
        raise ArgumentError("epochs", epochs, "1 or more")
    if not (lr > 0 and math.isfinite(lr)):
        raise ArgumentError("lr", lr, "a number above 0")
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", seed, "0 to 2**64 - 1")
    if not (hold >= 0 and settle >= 0 and hold + settle < 1):
        raise ArgumentError("hold and settle", (hold, settle), "parts that leave time to search")
    if float_bits is not None and not 1 <= float_bits <= 22:
        raise ArgumentError("float_bits", float_bits, "1 to 22 bits, or None")
    if patience is not None and patience < 1:
        raise ArgumentError("patience", patience, "1 or more epochs, or None")
