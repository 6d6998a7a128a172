"""Conversion with inputs at hand: weights are rounded, and trained if wanted, for what the network does with them.

Without training, :mod:`.feedback` rounds every layer for the inputs that it sees. With it, :mod:`.refinement` moves the
weights under their own rounding. Then batch norms get the statistics of the rounded network, and the step is moved
until the whole file has its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints import Checkpoint, Entry
from ..errors import ArchitectureError, ArgumentError, TargetError
from ..search.distillation import outputs_of
from ..search.statistics import restore
from .allocation import AIM, TOLERANCE
from .feedback import DAMPINGS, Feedback, Moments, levels_fed_back, listen
from .goals import Goal
from .inputs import Inputs
from .leveling import Leveled, leveled, windows
from .lossy import LossyModel, Pass
from .overlay import Overlay
from .plan import grid
from .refinement import N_BATCH, Refinement
from .report import Rivals

# Passes that look for the step at which the file has its size.
MAX_PASSES = 16
# Inputs whose moments are taken, and those on which norms without statistics get some.
N_LISTENED, N_RESTORED = 512, 1024
SEED = 0


@dataclass(frozen=True)
class Calibration:
    """What a conversion may look at beside the checkpoint.

    Attributes:
        model: The network, in float32, with the tensors of the checkpoint under the names of the checkpoint.
        inputs: [N, ...] as the network takes them; no labels.
        epochs: Passes over the inputs in which weights are trained; 0 for rounding alone.
        trained: Called after each step of the training with the steps done, those of all and the running loss.
    """

    model: nn.Module
    inputs: Tensor
    epochs: int = 0
    trained: Callable[[int, int, float], None] | None = None


@dataclass(frozen=True)
class Found:
    """A file that is not too large: its bytes, what it holds, where that lies, and its rounded weights by name."""

    n_bytes: int
    done: Pass
    spool: BinaryIO
    rounded: Mapping[str, Leveled]


class CalibratedSearch:
    """Finds the file of a size whose network does most nearly what the given one did."""

    def __init__(
        self, checkpoint: Checkpoint, goal: Goal, rivals: Rivals, spool: Callable[[], BinaryIO],
        progress: Callable[[Entry], None], arch: Mapping[str, Any], meta: Mapping[str, str], *,
        calibration: Calibration, overlay: Overlay | None = None, ranged: bool | None = None,
        folds: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        if goal.n_bytes is None:
            raise ArgumentError("max_error", goal.error, "target_size or bits beside calibrate, which moves weights")
        self._limit, self._spool, self._progress, self._arch, self._meta = goal.n_bytes, spool, progress, arch, meta
        # Tied parameters under all of their names: a checkpoint may begin with any of them.
        parameters = dict(calibration.model.named_parameters(remove_duplicate=False))
        self._lossy = LossyModel(
            checkpoint, rivals.take, overlay, ranged=ranged, folds=folds, parameters=parameters
        )  # fmt: skip
        self._calibration = calibration
        self._inputs = Inputs(calibration.inputs, seed=SEED)
        if len(self._inputs) < 2 and any(isinstance(module, _BatchNorm) for module in calibration.model.modules()):
            raise ArgumentError("calibrate", "1 input", "two or more, for statistics of batch norms")
        self._check_fit()
        # Networks in training here go by the statistics of each batch, which a folded norm was not made for.
        restore(calibration.model, self._inputs.some(N_RESTORED))
        self._dtypes = {entry.name: checkpoint.read(entry.name).dtype for entry in checkpoint.entries}
        named = {id(parameters[name]): name for name in reversed(self._lossy.names) if name in parameters}
        self._names = [name for name in self._lossy.names if named.get(id(parameters.get(name))) == name]
        self._near = {name: near for name in self._names if (near := self._lossy.near(name)) is not None}
        self._base_digest = overlay.base.digest if overlay else None
        # What is as the base has it costs nothing as long as it is not trained.
        self._still = {
            name
            for name in parameters
            if overlay and name in self._dtypes and overlay.gives(name, checkpoint.read(name))
        }
        if not self._names:
            kept = "the base gives all weight matrices to the bit", "no inputs: nothing is rounded"
            none = "no weight matrix of the model is in the checkpoint", "the same names"
            raise ArgumentError("calibrate", *(kept if self._still else none))
        self._feedback: dict[str, list[Feedback]] = {}
        self._moments: dict[str, Moments] = {}

    @torch.no_grad()
    def _check_fit(self) -> None:
        try:
            outputs_of(self._calibration.model.eval()(next(self._inputs.some(1))))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            shape = list(self._calibration.inputs.shape[1:])
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArchitectureError((f"inputs of shape {shape} do not go through the model: {reason}",)) from None

    def run(self) -> Pass:
        """The pass whose file is nearest to the size without missing it.

        Raises:
            TargetError: No file of the checkpoint is so small.
        """
        refinement = Refinement(self._calibration.model, self._names, self._inputs, near=self._near, still=self._still)
        step = refinement.step_of(self._limit)
        if self._calibration.epochs:
            # What is beside the planes comes from a file; planes alone are what the training keeps the size of.
            n_bytes = float(self._limit)
            for _ in range(2):
                done, spool = self._draft(refinement.leveled(step, self._dtypes), {}, step)
                n_bytes = max(1.0, self._limit * AIM - self._cost(done) + refinement.n_bytes(step))
                spool.close()
                step = refinement.step_of(n_bytes)
            n_steps = max(1, math.ceil(self._calibration.epochs * len(self._inputs) / N_BATCH))
            refinement.run(n_bytes, n_steps, progress=self._calibration.trained)
            return self._nearest(refinement, refinement.step_of(n_bytes))[1]
        self._moments = moments = listen(self._calibration.model, self._names, self._inputs.some(N_LISTENED))
        found = []
        for damping in DAMPINGS:
            self._feedback = {
                name: [Feedback.of(group, damping=damping) for group in groups] for name, groups in moments.items()
            }
            found.append(self._nearest(refinement, step))
        return min(found, key=itemgetter(0))[1]

    def _nearest(self, refinement: Refinement, step: float) -> tuple[float, Pass]:
        """Moves the step until the file has its size; how far the network then is from the given one, and the file."""
        floats, floats_of = dict[str, Tensor](), 0.0
        finer, coarser, costs = 0.0, math.inf, dict[float, int]()
        best: Found | None = None
        settled = False
        # The last try is the coarsest step, which shows what is the least.
        for left in reversed(range(MAX_PASSES)):
            if best is None and (left == 0 or step in costs):
                step, left = refinement.step_of(0), 0
            elif step in costs:
                break
            rounded = self._rounded(refinement, step)
            if not floats:
                floats, floats_of = self._floats(refinement, rounded), step
            best, cost = self._try(rounded, floats, step, best)
            if self._is_near(cost) and floats_of != step and not settled:
                # The statistics were those of a step further away; its own may take some bytes more or less.
                floats, floats_of, settled = self._floats(refinement, rounded), step, True
                finer, coarser = 0.0, math.inf
                costs.clear()
                best, cost = self._try(rounded, floats, step, best and replace(best, n_bytes=0))
            costs[step] = cost
            if left == 0 or self._is_near(cost):
                break
            finer, coarser = (step, coarser) if cost > self._limit else (finer, step)
            step = self._next(costs, finer, coarser)
        if best is None:
            raise TargetError(self._limit, min(costs.values()))
        if floats_of != best.done.step:
            floats = self._floats(refinement, best.rounded)
            best = self._try(best.rounded, floats, best.done.step, replace(best, n_bytes=0))[0] or best
        dense = {name: leveled.dense for name, leveled in best.rounded.items()}
        return refinement.distance(dense, n=N_LISTENED), best.done

    def _is_near(self, n_bytes: int) -> bool:
        return (1 - TOLERANCE) * self._limit <= n_bytes <= self._limit

    def _try(
        self, rounded: Mapping[str, Leveled], floats: Mapping[str, Tensor], step: float, best: Found | None
    ) -> tuple[Found | None, int]:
        """The better of a file and the best so far, and the bytes of the file."""
        done, spool = self._draft(rounded, floats, step)
        n_bytes = self._cost(done)
        if n_bytes > self._limit or (best is not None and n_bytes <= best.n_bytes):
            spool.close()
            return best, n_bytes
        if best is not None:
            best.spool.close()
        return Found(n_bytes, done, spool, rounded), n_bytes

    def _next(self, costs: Mapping[float, int], finer: float, coarser: float) -> float:
        aim = AIM * self._limit
        if len(costs) > 1:
            one, other = sorted(costs, key=lambda step: abs(costs[step] - aim))[:2]
            slope = (costs[one] - costs[other]) / math.log2(one / other)
            move = (aim - costs[one]) / slope if slope else 1.0
            step = grid(one * 2.0 ** min(1.0, max(-1.0, move)))
        else:
            (step, cost), *_ = costs.items()
            step = grid(step * min(2.0, max(0.5, cost / aim)))
        if finer < step < coarser:
            return step
        return grid(math.sqrt(finer * coarser) if finer > 0 and coarser < math.inf else finer * 2 or coarser / 2)

    def _rounded(self, refinement: Refinement, step: float) -> dict[str, Leveled]:
        rounded = refinement.leveled(step, self._dtypes)
        parameters, rules = dict(refinement.student.named_parameters(remove_duplicate=False)), refinement.rules(step)
        for name, feedbacks in self._feedback.items():
            rule, own = rules[name]
            scaled = windows(refinement.away(name))
            scaled /= np.float32(own)
            rows = scaled.reshape(parameters[name].shape[0], -1)
            levels = levels_fed_back(rows, feedbacks, rule).reshape(scaled.shape)
            weight = parameters[name].detach().to(self._dtypes[name])
            found = leveled(weight, scaled, levels, own, self._near.get(name))
            rounded[name] = self._lossy.raised(name, found, weight, self._moments[name])
        return rounded

    def _floats(self, refinement: Refinement, rounded: Mapping[str, Leveled]) -> dict[str, Tensor]:
        refinement.follow({name: leveled.dense for name, leveled in rounded.items()})
        floats = refinement.floats()
        return {name: value.to(self._dtypes[name]) for name, value in floats.items() if name in self._dtypes}

    def _draft(
        self, rounded: Mapping[str, Leveled], floats: Mapping[str, Tensor], step: float
    ) -> tuple[Pass, BinaryIO]:
        spool = self._spool()
        return self._lossy.draft(step, spool, self._progress, given={**floats, **rounded}), spool

    def _cost(self, done: Pass) -> int:
        return done.draft.n_bytes(arch=self._arch, seed=0, meta=self._meta, base_digest=self._base_digest)
