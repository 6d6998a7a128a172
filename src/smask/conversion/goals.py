"""What a lossy conversion is to reach: a size, bits a weight, or an error."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real

from ..errors import ArgumentError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
WANT = "bytes, or a number with kB, MB or GB (decimal)"


@dataclass(frozen=True)
class Goal:
    """One of: most bytes of the whole file, largest relative error of the weights in planes."""

    n_bytes: int | None = None
    error: float | None = None


def size_of(text: str | int, *, name: str = "target_size") -> int:
    """Bytes of ``60000``, ``60kB`` or ``1.5 MB``.

    Raises:
        ArgumentError: Anything else, or less than one byte.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) *([kKmMgG]?[bB]?)", str(text).strip())
    unit = found[2].lower() if found else "?"
    factor = UNITS.get(unit if unit in UNITS else unit + "b")
    if found is None or factor is None or (n_bytes := math.floor(float(found[1]) * factor)) < 1:
        raise ArgumentError(name, text, WANT)
    return n_bytes


def goal_of(
    *, bits: float | None, target_size: str | int | None, max_error: float | None, n_weights: int
) -> Goal | None:
    """The goal that the caller gave, None for none.

    Raises:
        ArgumentError: Several, or one out of range.
    """
    given = {"bits": bits, "target_size": target_size, "max_error": max_error}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ArgumentError(" and ".join(given), ", ".join(map(str, given.values())), "one of them")
    if bits is not None:
        if not isinstance(bits, Real) or not 0 < bits <= 32:
            raise ArgumentError("bits", bits, "bits a weight above 0, at most 32, over the whole file")
        return Goal(n_bytes=max(1, math.floor(bits * n_weights / 8)))
    if target_size is not None:
        return Goal(n_bytes=size_of(target_size))
    if max_error is not None:
        if not isinstance(max_error, Real) or not 0 < max_error < 1:
            raise ArgumentError("max_error", max_error, "a part of the length of all weights, above 0 and below 1")
        return Goal(error=max_error)
    return None
