"""The one step of a model, found for a size or an error.

Estimates from samples lead; what a whole pass gives beyond its estimate is taken to stay the same in the next. Where
no step gives what is wanted, the weights are shared between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from ..errors import ArgumentError, SmaskError, TargetError
from .checkpoints import Checkpoint, Entry
from .goals import Goal
from .lossy import PER_OCTAVE, LossyModel, Mixture, Pass, grid
from .report import Rivals

# A file is this part below its target or less; the search aims between.
TOLERANCE, AIM = 0.01, 0.996
# Passes that look for a step, passes that share the weights between two, and how near in size these two may be: then
# the straight line between them is as good as a step.
MAX_STEPS, MAX_SHARES, NEAR = 6, 24, 0.04
# Coders take about so much more than the entropy of what they code.
CODER = 1.01


class Search:
    """Finds the step for a goal."""

    def __init__(
        self, checkpoint: Checkpoint, goal: Goal, rivals: Rivals, spool: Callable[[], BinaryIO],
        progress: Callable[[Entry], None], arch: Mapping[str, Any], meta: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._goal, self._spool, self._progress, self._arch, self._meta = goal, spool, progress, arch, meta
        self._model = LossyModel(checkpoint, rivals.take)
        # From here on "cost" is what the goal limits: a size, or the logarithm of an error.
        limit = math.log(goal.error) if goal.error else float(goal.n_bytes or 0)
        self._most = limit
        self._least = limit - TOLERANCE if goal.error else limit * (1 - TOLERANCE)
        self._aim = limit - TOLERANCE * (1 - AIM) if goal.error else limit * AIM
        self._best: tuple[float, Pass, BinaryIO] | None = None

    def run(self) -> Pass:
        """The pass whose file is nearest to the goal without missing it."""
        largest = self._model.largest
        ends = grid(largest * 2.0**-15), grid(max(largest, 2.0**-60) * 4)
        tried: dict[float, float] = {}
        # Steps next to the wanted one, finer and coarser, as far as passes have shown.
        finer, coarser = 0.0, math.inf
        shift = 0.0 if self._goal.error else self._model.overhead(self._solved(*ends, 0.0))
        for _ in range(MAX_STEPS):
            step = self._solved(*ends, shift)
            if not finer < step < coarser:
                # The estimate leads out of what passes have shown already: halve that.
                step = grid(math.sqrt(max(finer, ends[0]) * min(coarser, ends[1])))
            if step in tried:
                break
            cost = tried[step] = self._cost(step)
            if self._hit(cost):
                break
            if (cost > self._most) != bool(self._goal.error):
                finer = step
            else:
                coarser = step
            shift = cost - self._estimate(step)
            if finer and coarser < math.inf and abs(tried[finer] - tried[coarser]) < self._near:
                break
        if self._best is None or not self._hit(self._best[0]):
            self._share(max(finer, ends[0]), min(coarser, ends[1]), tried)
        if self._best is None:
            raise self._unreachable(tried[ends[0] if self._goal.error else ends[1]])
        return self._best[1]

    @property
    def _near(self) -> float:
        return NEAR if self._goal.error else NEAR * self._most

    def _share(self, finer: float, coarser: float, tried: dict[float, float]) -> None:
        """Looks between two steps of which one is on either side of the goal, if they are."""
        for step in (finer, coarser):
            if step not in tried:
                tried[step] = self._cost(step)
            if self._hit(tried[step]):
                return
        low, high = 0, self._model.n_elements
        costs = [tried[coarser], tried[finer]]
        if not min(costs) <= self._aim <= max(costs):
            return
        for attempt in range(MAX_SHARES):
            if high - low < 2:
                return
            # In turns by the straight line between both ends and by halves, as neither alone is safe.
            part = (self._aim - costs[0]) / (costs[1] - costs[0]) if attempt % 3 < 2 and costs[0] != costs[1] else 0.5
            n_fine = min(high - 1, max(low + 1, low + round(part * (high - low))))
            cost = self._cost(Mixture(finer, coarser, n_fine))
            if self._hit(cost):
                return
            if (cost > self._most) == (costs[1] > self._most):
                high, costs[1] = n_fine, cost
            else:
                low, costs[0] = n_fine, cost

    def _hit(self, cost: float) -> bool:
        return self._least <= cost <= self._most

    def _cost(self, plan: float | Mixture) -> float:
        """Makes a whole pass, and keeps it if it is the best so far."""
        spool = self._spool()
        done = self._model.draft(plan, spool, self._progress)
        if self._goal.error:
            cost = math.log(max(done.relative_error, 2.0**-60))
        else:
            cost = float(done.draft.n_bytes(arch=self._arch, seed=0, meta=self._meta))
        if cost <= self._most and (self._best is None or cost > self._best[0]):
            if self._best is not None:
                self._best[2].close()
            self._best = cost, done, spool
        else:
            spool.close()
        return cost

    def _solved(self, smallest: float, largest: float, shift: float) -> float:
        """The step whose estimated cost is the aim; estimates are made at few steps and joined by straight lines."""
        sign = 1 if self._goal.error else -1  # a larger step has more error and fewer bytes
        low, high = math.floor(math.log2(smallest) * PER_OCTAVE), math.ceil(math.log2(largest) * PER_OCTAVE)
        costs: dict[int, float] = {}
        while high - low > 1:
            middle = (low + high) // 2
            costs[middle] = self._estimate(2.0 ** (middle / PER_OCTAVE)) + shift - self._aim
            low, high = (middle, high) if sign * costs[middle] < 0 else (low, middle)
        part = costs[low] / (costs[low] - costs[high]) if {low, high} <= costs.keys() else 0.5
        return min(largest, max(smallest, grid(2.0 ** ((low + part) / PER_OCTAVE))))

    def _estimate(self, step: float) -> float:
        if self._goal.error:
            return math.log(max(self._model.estimate(step)[1], 2.0**-60))
        return CODER * self._model.estimate(step)[0]

    def _unreachable(self, cost: float) -> SmaskError:
        if self._goal.error:
            return ArgumentError("max_error", self._goal.error, f"at least {math.exp(cost):.3g}, or lossless")
        return TargetError(int(self._goal.n_bytes or 0), int(cost))
