"""The one step of a model, found for a size or an error.

Estimates from samples lead, put right by what whole passes gave. Where no step gives what is wanted, the weights are
shared between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from ..checkpoints import Checkpoint, Entry
from ..errors import ArgumentError, SmaskError, TargetError
from .goals import Goal
from .lossy import PER_OCTAVE, LossyModel, Pass
from .overlay import Overlay
from .plan import Plan, grid
from .report import Rivals

# A file is this part below its target or less; the search aims between.
TOLERANCE, AIM = 0.01, 0.996
# Passes that look for a step, passes that share the weights between two, and how often that is repeated.
MAX_STEPS, MAX_SHARES, MAX_NESTED = 24, 24, 4
# How near to each other two steps, and what they cost, may be so that sharing between them is as good as one step.
CLOSE, NEAR = 1.02, 0.04
# An estimate is taken to be wrong by no more than this factor.
MOST_FACTOR = 3.0


class Search:
    """Finds the step for a goal."""

    def __init__(
        self, checkpoint: Checkpoint, goal: Goal, rivals: Rivals, spool: Callable[[], BinaryIO],
        progress: Callable[[Entry], None], arch: Mapping[str, Any], meta: Mapping[str, str],
        overlay: Overlay | None = None, *, ranged: bool | None = None, folds: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self._goal, self._spool, self._progress, self._arch, self._meta = goal, spool, progress, arch, meta
        self._base_digest = overlay.base.digest if overlay else None
        self._model = LossyModel(checkpoint, rivals.take, overlay, raises=not goal.error, ranged=ranged, folds=folds)
        # From here on "cost" is what the goal limits: a size, or the logarithm of an error.
        limit = math.log(goal.error) if goal.error else float(goal.n_bytes or 0)
        self._most = limit
        self._least = limit - TOLERANCE if goal.error else limit * (1 - TOLERANCE)
        self._aim = limit - TOLERANCE * (1 - AIM) if goal.error else limit * AIM
        self._best: tuple[float, Pass, BinaryIO] | None = None
        self._costs: dict[Plan, float] = {}

    def run(self) -> Pass:
        """The pass whose file is nearest to the goal without missing it."""
        largest, n = self._model.largest, self._model.n_elements
        # A tensor of larger weights then has the next step with which it has no more than sixteen planes.
        smallest, largest = grid(self._model.least * 2.0**-15), grid(max(largest, 2.0**-60) * 4)
        self._look(n, smallest, largest)
        # Where tensors change between a trellis and plain rounding, sizes may jump over the goal.
        if (self._best is None or not self._hit(self._best[0])) and self._model.round_plainly():
            self._costs.clear()
            self._look(n, smallest, largest)
        if self._best is None:
            raise self._unreachable(self._cost(Plan(((n, smallest if self._goal.error else largest),))))
        return self._best[1]

    def _look(self, head: int, smallest: float, coarsest: float) -> None:
        """Makes passes until one meets the goal, or there is nothing left to try."""
        tail = Plan()
        for _ in range(MAX_NESTED):
            steps = self._bracket(head, tail, smallest, coarsest)
            if steps is None:
                break
            n_fine = self._share(head, tail, *steps)
            if not n_fine:
                break
            # At one more weight the cost jumps over the goal. Leave it, and make those before it finer.
            head, tail, coarsest = n_fine, Plan(((head, steps[1]), *tail.parts)), steps[0]

    def _bracket(self, head: int, tail: Plan, smallest: float, largest: float) -> tuple[float, float] | None:
        """Two steps next to each other, for all before ``head``, of which the finer costs more than the goal allows and
        the coarser less; None where a step meets the goal, or where all are on one side of it.
        """

        def cost_of(step: float) -> float:
            if step not in costs:
                costs[step] = self._cost(Plan(((head, step), *tail.parts)))
            return costs[step]

        costs: dict[float, float] = {}
        finer, coarser, factor = 0.0, math.inf, 1.0
        for attempt in range(MAX_STEPS):
            if len(costs) > 1 and attempt % 5 < 4:
                one, other = self._nearest(costs, finer, coarser)
                slope = (costs[one] - costs[other]) / math.log2(one / other)
                move = (self._aim - costs[one]) / slope if slope else 0.0
                step = grid(one * 2.0 ** min(1.0, max(-1.0, move)))
            elif not tail.parts and attempt < 2:
                step = self._solved(smallest, largest, factor)
            else:
                step = largest / 2 if not costs else 0.0
            if finer and coarser < math.inf and not finer < step < coarser:
                step = grid(math.sqrt(finer * coarser))
            elif costs and not finer < step < coarser:
                # A move that is too small for the grid goes a little further, and if that is not enough, far.
                reach = CLOSE if len(costs) > 1 and attempt % 5 < 4 else 2.0
                step = grid(finer * reach if finer else coarser / reach)
            step = min(largest, max(smallest, step))
            if step in costs:
                break
            if self._hit(cost_of(step)):
                return None
            if self._is_too_fine(costs[step]):
                finer = step
            else:
                coarser = step
            factor = self._factor(step, costs[step])
            if finer and coarser < finer * CLOSE and abs(costs[finer] - costs[coarser]) < self._near:
                break
        finer, coarser = finer or smallest, min(coarser, largest)
        if self._hit(cost_of(finer)) or self._hit(cost_of(coarser)):
            return None
        return (finer, coarser) if self._is_too_fine(cost_of(finer)) > self._is_too_fine(cost_of(coarser)) else None

    def _nearest(self, costs: Mapping[float, float], finer: float, coarser: float) -> tuple[float, float]:
        """The steps on both sides of the goal, or the two nearest to it."""
        if finer and coarser < math.inf:
            return finer, coarser
        one, other, *_ = sorted(costs, key=lambda step: abs(costs[step] - self._aim))
        return one, other

    def _is_too_fine(self, cost: float) -> bool:
        return (cost > self._most) != bool(self._goal.error)

    @property
    def _near(self) -> float:
        # Where two steps share a tensor its error is that of neither: for an error steps come as near as they can.
        return 0.0 if self._goal.error else NEAR * self._most

    def _share(self, head: int, tail: Plan, finer: float, coarser: float) -> int:
        """Shares what is before ``head`` between two steps; 0 on success, else the most of the finer before a jump."""

        def cost_of(n_fine: int) -> float:
            return self._cost(Plan(((n_fine, finer), (head, coarser), *tail.parts)))

        low, high = 0, head
        costs = [cost_of(low), cost_of(high)]
        for attempt in range(MAX_SHARES):
            if high - low < 2:
                break
            # In turns by the straight line between both ends and by halves, as neither alone is safe.
            part = (self._aim - costs[0]) / (costs[1] - costs[0]) if attempt % 3 < 2 and costs[0] != costs[1] else 0.5
            n_fine = min(high - 1, max(low + 1, low + round(part * (high - low))))
            cost = cost_of(n_fine)
            if self._hit(cost):
                return 0
            if self._is_too_fine(cost):
                high, costs[1] = n_fine, cost
            else:
                low, costs[0] = n_fine, cost
        return low

    def _hit(self, cost: float) -> bool:
        return self._least <= cost <= self._most

    def _cost(self, plan: Plan) -> float:
        """Makes a whole pass, unless it was made before, and keeps it if it is the best so far."""
        plan = plan.shortest()
        if plan in self._costs:
            return self._costs[plan]
        spool = self._spool()
        done = self._model.draft(plan, spool, self._progress)
        if self._goal.error:
            cost = math.log(max(done.relative_error, 2.0**-60))
        else:
            n_bytes = done.draft.n_bytes(arch=self._arch, seed=0, meta=self._meta, base_digest=self._base_digest)
            cost = float(n_bytes)
        if cost <= self._most and (self._best is None or cost > self._best[0]):
            if self._best is not None:
                self._best[2].close()
            self._best = cost, done, spool
        else:
            spool.close()
        self._costs[plan] = cost
        return cost

    def _solved(self, smallest: float, largest: float, factor: float) -> float:
        """The step whose estimated cost is the aim; estimates are made at few steps and joined by straight lines."""
        sign = 1 if self._goal.error else -1  # a larger step has more error and fewer bytes
        low, high = math.floor(math.log2(smallest) * PER_OCTAVE), math.ceil(math.log2(largest) * PER_OCTAVE)
        costs: dict[int, float] = {}
        while high - low > 1:
            middle = (low + high) // 2
            costs[middle] = self._estimate(2.0 ** (middle / PER_OCTAVE), factor) - self._aim
            low, high = (middle, high) if sign * costs[middle] < 0 else (low, middle)
        part = costs[low] / (costs[low] - costs[high]) if {low, high} <= costs.keys() else 0.5
        return min(largest, max(smallest, grid(2.0 ** ((low + part) / PER_OCTAVE))))

    def _estimate(self, step: float, factor: float) -> float:
        n_bytes, error = self._model.estimate(step)
        if self._goal.error:
            return math.log(max(factor * error, 2.0**-60))
        return factor * n_bytes + self._model.overhead(step)

    def _factor(self, step: float, cost: float) -> float:
        n_bytes, error = self._model.estimate(step)
        got, want = (math.exp(cost), error) if self._goal.error else (cost - self._model.overhead(step), n_bytes)
        return min(MOST_FACTOR, max(1 / MOST_FACTOR, got / want)) if want > 0 else 1.0

    def _unreachable(self, cost: float) -> SmaskError:
        if self._goal.error:
            return ArgumentError("max_error", self._goal.error, f"at least {math.exp(cost):.3g}, or lossless")
        return TargetError(int(self._goal.n_bytes or 0), int(cost))
