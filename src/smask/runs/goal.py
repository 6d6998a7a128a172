"""The smallest file that reaches an accuracy: searches at several densities, halved or doubled, then bisected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ArgumentError, UnreachableError

DENSEST = 0.5
SPARSEST = 1e-4
# Two searches of one density and other seeds differ by more than this factor of density brings.
NEAR = 1.1
N_TRIALS = 12


@dataclass(frozen=True, eq=False)
class Trial:
    """One finished search.

    Attributes:
        density: Kept weights over weights.
        data: The whole file.
        accuracy: Of the file read back, as a fraction, on inputs that took no part in the search.
    """

    density: float
    data: bytes
    accuracy: float


def smallest(
    search: Callable[[float], Trial], accuracy: float, *, density: float, keep_best: bool = False
) -> tuple[Trial, list[Trial]]:
    """Smallest file among all tried that reaches an accuracy.

    Args:
        search: Density to a finished search.
        accuracy: Fraction to reach, in (0, 1].
        density: Where to begin.
        keep_best: Whether the most accurate file is wanted where none reaches it, instead of an error.

    Returns:
        That search, and all in the order in which they were made.

    Raises:
        ArgumentError: An accuracy out of range.
        UnreachableError: None reaches it up to a density of one half.
    """
    if not 0 < accuracy <= 1:
        raise ArgumentError("accuracy", accuracy, "a fraction above 0 and at most 1")
    tried: list[Trial] = []

    def reaches(density: float) -> bool:
        tried.append(search(density))
        return tried[-1].accuracy >= accuracy

    low: float | None = None
    high: float | None = None
    now = min(density, DENSEST)
    while len(tried) < N_TRIALS:
        if reaches(now):
            high = now
        else:
            low = now
        if high is None:
            if low == DENSEST:
                break
            now = min(2 * now, DENSEST)
        elif low is None:
            if high <= SPARSEST:
                break
            now = max(high / 2, SPARSEST)
        elif high / low <= NEAR:
            break
        else:
            now = (low * high) ** 0.5
    good = [trial for trial in tried if trial.accuracy >= accuracy]
    if good:
        return min(good, key=lambda trial: len(trial.data)), tried
    best = max(tried, key=lambda trial: trial.accuracy)
    if keep_best:
        return best, tried
    raise UnreachableError("accuracy", accuracy, best.accuracy, f"{len(best.data):,} bytes, density {best.density:.3g}")
