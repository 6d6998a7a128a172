"""The smallest file that is good enough: searches at several densities, halved or doubled, then bisected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ArgumentError, UnreachableError

DENSEST = 0.5
SPARSEST = 1e-4
# Two searches of one density and other seeds differ by more than this factor of density brings.
NEAR = 1.1
N_TRIALS = 12
# What a file can be asked for, the most that this can be, and how it is told.
KINDS = {
    "accuracy": (1.0, "a fraction above 0 and at most 1"),
    "bits_per_byte": (8.0, "bits for each byte of text, above 0 and at most 8"),
}


@dataclass(frozen=True)
class Goal:
    """What a file has to reach.

    Attributes:
        kind: ``accuracy``, a fraction of inputs that is right at the least, or ``bits_per_byte`` of text at the most.
        value: In that unit.

    Raises:
        ArgumentError: A value out of range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        most, want = KINDS[self.kind]
        if not 0 < self.value <= most:
            raise ArgumentError(self.kind, self.value, want)

    def own(self, judged: float) -> float:
        """A value of :meth:`smask.search.tasks.Task.judged`, of which more is better, in the unit of the goal."""
        return -judged if self.kind == "bits_per_byte" else judged

    def reached(self, judged: float) -> bool:
        """Whether this is good enough."""
        return judged >= self.own(self.value)


@dataclass(frozen=True, eq=False)
class Trial:
    """One finished search.

    Attributes:
        density: Kept weights over weights.
        data: The whole file.
        judged: The file read back, on data that took no part in the search: an accuracy as a fraction, or minus bits
            per byte, so that more is better.
    """

    density: float
    data: bytes
    judged: float


def smallest(
    search: Callable[[float], Trial], goal: Goal, *, density: float, keep_best: bool = False
) -> tuple[Trial, list[Trial]]:
    """Smallest file among all tried that reaches a goal.

    Args:
        search: Density to a finished search.
        goal: What it has to reach.
        density: Where to begin.
        keep_best: Whether the best file is wanted where none reaches it, instead of an error.

    Returns:
        That search, and all in the order in which they were made.

    Raises:
        UnreachableError: None reaches it up to a density of one half.
    """
    tried: list[Trial] = []

    def reaches(density: float) -> bool:
        tried.append(search(density))
        return goal.reached(tried[-1].judged)

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
    good = [trial for trial in tried if goal.reached(trial.judged)]
    if good:
        return min(good, key=lambda trial: len(trial.data)), tried
    best = max(tried, key=lambda trial: trial.judged)
    if keep_best:
        return best, tried
    detail = f"{len(best.data):,} bytes, density {best.density:.3g}"
    raise UnreachableError(goal.kind, goal.value, goal.own(best.judged), detail)
