"""The one step of a model, found for a size or an error.

Estimates from samples lead; what a whole pass gives beyond its estimate is taken to stay the same in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from ..checkpoints import Checkpoint, Entry
from ..errors import ArgumentError, SmaskError, TargetError
from .goals import Goal
from .lossy import LossyModel, Pass, grid
from .overlay import Overlay
from .report import Rivals

# A file is this part below its target or less; the search aims between, and gives up after so many passes.
TOLERANCE, AIM, MAX_PASSES = 0.01, 0.996, 10
N_BISECTIONS = 24


class Search:
    """Finds the step for a goal."""

    def __init__(
        self, checkpoint: Checkpoint, goal: Goal, rivals: Rivals, spool: Callable[[], BinaryIO],
        progress: Callable[[Entry], None], arch: Mapping[str, Any], meta: Mapping[str, str], overlay: Overlay | None,
    ) -> None:  # fmt: skip
        self._goal, self._spool, self._progress, self._arch, self._meta = goal, spool, progress, arch, meta
        self._overlay = overlay
        self._model = LossyModel(checkpoint, rivals.take, overlay)

    def run(self) -> Pass:
        """The pass whose file is nearest to the goal without missing it."""
        limit = math.log(self._goal.error) if self._goal.error else float(self._goal.n_bytes or 0)
        sign = 1 if self._goal.error else -1  # a larger step has more error and fewer bytes
        least, most = (limit - TOLERANCE, limit) if self._goal.error else (limit * (1 - TOLERANCE), limit)
        aim = limit - TOLERANCE * (1 - AIM) if self._goal.error else limit * AIM
        smallest, largest = grid(self._model.largest * 2.0**-15), grid(max(self._model.largest, 2.0**-60) * 4)
        shift, best, tried, bounds = 0.0, None, set[float](), [smallest / 2, largest * 2]
        for _ in range(MAX_PASSES):
            low, high = math.log2(smallest), math.log2(largest)
            for _ in range(N_BISECTIONS):
                middle = (low + high) / 2
                if sign * (self._estimate(2.0**middle) + shift - aim) < 0:
                    low = middle
                else:
                    high = middle
            step = grid(2.0**low)
            if not bounds[0] < step < bounds[1]:
                # The estimate leads out of what passes have shown already: halve that.
                step = grid(math.sqrt(bounds[0] * bounds[1]))
            if step in tried:
                break
            tried.add(step)
            done = self._model.draft(step, self._spool(), self._progress)
            got = self._measure(done)
            if got <= most and (best is None or got > best[0]):
                best = got, done
            if least <= got <= most or (got <= most and step == smallest):
                break
            bounds[(got <= most) == (sign < 0)] = step
            shift = got - self._estimate(step)
        if best is None:
            done = self._model.draft(largest if sign < 0 else smallest, self._spool(), self._progress)
            if (got := self._measure(done)) > most:
                raise self._unreachable(got)
            best = got, done
        return best[1]

    def _estimate(self, step: float) -> float:
        n_bytes, error = self._model.estimate(step)
        return math.log(max(error, 2.0**-60)) if self._goal.error else n_bytes

    def _measure(self, done: Pass) -> float:
        if self._goal.error:
            return math.log(max(done.relative_error, 2.0**-60))
        digest = self._overlay.base.digest if self._overlay else None
        return float(done.draft.n_bytes(arch=self._arch, seed=0, meta=self._meta, base_digest=digest))

    def _unreachable(self, got: float) -> SmaskError:
        if self._goal.error:
            return ArgumentError("max_error", self._goal.error, f"at least {math.exp(got):.3g}, or lossless")
        return TargetError(int(self._goal.n_bytes or 0), int(got))
