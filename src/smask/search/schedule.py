"""How a search proceeds: densities fall, hold, masks are fixed and floats settle; the learning rate falls to zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Learning rate in whose steps of Adam distances between scores are said.
DEFAULT_RATE = 1e-3
# In a search of fewer steps a higher rate is to bring scores past each other, so that they do not lie farther apart.
N_LONG = 400


@dataclass
class Schedule:
    """Phases of a search in steps.

    Attributes:
        n_steps: Steps in all.
        n_search: Steps until masks are fixed.
        n_descent: Steps until densities are at their end.
        lr: Learning rate at the start; it follows half a cosine to zero.
        turn: Step from which the rest of the cosine is compressed into the steps left, 0 if never.
        n_planned: Steps of the cosine up to the turn.
        n_ramp: Steps until weights near a threshold are kept whole or not at all.
        n_passes: Over the training data.
    """

    n_steps: int
    n_search: int
    n_descent: int
    lr: float
    turn: int = 0
    n_planned: int = 0
    n_ramp: int = 0
    n_passes: int = 1

    @classmethod
    def of(
        cls, n_steps: int, *, lr: float, hold: float, settle: float, early: bool = False, n_passes: int = 1
    ) -> Schedule:
        """The usual one: ``hold`` and ``settle`` are parts of all steps; ramps have ended where one may end early."""
        n_search, n_descent = (max(1, round(n_steps * (1 - part))) for part in (settle, settle + hold))
        return cls(n_steps, n_search, n_descent, lr, n_ramp=n_descent if early else n_search, n_passes=n_passes)

    @property
    def stride(self) -> float:
        """Distances between scores over those at the default rate: as many steps of Adam, but where those are few."""
        higher = self.lr / DEFAULT_RATE
        return higher if higher <= 1 else max(1.0, higher * min(1.0, self.n_search / N_LONG))

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if not self.turn:
            return self.lr * cosine(step / self.n_steps)
        left = (step - self.turn) / max(1, self.n_steps - self.turn)
        return self.lr * cosine(self.turn / self.n_planned) * cosine(left)

    def descent(self, step: int) -> float:
        """Part of the descent that is done, from 0 to 1."""
        return min(1.0, step / self.n_descent)

    def ramp(self, step: int) -> float:
        """Width of ramps over that at the start."""
        return max(0.0, 1 - step / self.n_ramp) if self.n_ramp else 0.0

    def wind_up(self, step: int) -> None:
        """Ends the search early: masks are fixed at this step, floats get their usual number of steps."""
        n_settle = self.n_steps - self.n_search
        self.turn, self.n_planned = step, self.n_steps
        self.n_search, self.n_steps = step, step + n_settle

    def numbers(self) -> dict[str, int]:
        """What :meth:`wind_up` may have changed."""
        return {name: getattr(self, name) for name in ("n_steps", "n_search", "turn", "n_planned")}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Takes over the numbers of another."""
        for name in self.numbers():
            setattr(self, name, int(numbers[name]))


def cosine(part: float) -> float:
    """Half a cosine, from 1 at part 0 to 0 at part 1 and after."""
    return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
