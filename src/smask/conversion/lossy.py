"""A checkpoint as levels over a seeded base: one step for the whole model, found for a size or an error.

The search works on a sample of every large tensor; whole passes then say how far the sample was off. What is no large
floating matrix is kept: integers and booleans exactly, small floats to a mantissa whose error is far below that of the
weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import Checkpoint, Entry
from ..draft import Draft
from ..errors import CheckpointError
from ..integrity import NAME_OF_DTYPE, raw_bytes
from ..records import Record
from . import mantissas, moments, paths
from .batchnorms import BatchNorms
from .feedback import Moments
from .leveling import Leveled, has_room, leveled, squared_length, windows
from .overlay import Overlay
from .plan import LARGEST_STEP, Plan, step_for
from .rounding import MAX_LEVEL, Floats, levels_of
from .scanned import Scanned, is_coded, is_mask

# Small floats are this much more exact than the weights in planes.
EXACTER = 16
# Coders take about this factor more than the entropy of what they code.
CODER = 1.007
# Estimates are made at steps so many to an octave; between them they are straight lines.
PER_OCTAVE = 8
NOT_FINITE = "NaN or infinity, which has no rounding", "keep it with lossless / --lossless"
TOO_LARGE = "weights beyond 1e22, which no step gives", NOT_FINITE[1]
# The largest weight: steps do not grow beyond what a scale may be.
MOST = LARGEST_STEP * MAX_LEVEL / 4


@dataclass
class Pass:
    """One whole pass over the checkpoint: the draft of a file and what it lost."""

    draft: Draft
    step: float
    errors: dict[str, float] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    error: float = 0.0
    energy: float = 0.0

    def count(self, name: str, error: float, energy: float) -> None:
        """Takes note of the squared error of a tensor, and of its own squares."""
        self.errors[name] = math.sqrt(error / energy) if energy else 0.0
        self.error += error
        self.energy += energy

    @property
    def relative_error(self) -> float:
        """Euclidean length of the difference over that of the weights in planes."""
        return math.sqrt(self.error / self.energy) if self.energy else 0.0


class LossyModel:
    """A checkpoint to be rounded; scanned once, then drafted at any step.

    Args:
        checkpoint: What to round.
        take: Sees every tensor once.
        overlay: The base that the file is over, if there is one.
        ranged: Whether planes have the coding ``range``, see :class:`smask.draft.Draft`.
        raises: Whether layers get back the length that rounding takes: better outputs at a larger squared error.
        folds: Paths of batch norms to be stored without statistics, each with the epsilon of its variance.
        parameters: What names stand for, where that is known: equal tensors are then one only if they are one parameter
            of the network, since others may go apart.

    Attributes:
        largest: The largest magnitude of all weights that are rounded, 0 if there is none.
        least: That of the tensor where it is smallest, those of nothing but zeros left out; 0 if there is none.
        n_elements: Floating elements, those which a :class:`Plan` counts.

    Raises:
        CheckpointError: A floating tensor with NaN, infinity or weights beyond what a scale gives.
    """

    def __init__(
        self, checkpoint: Checkpoint, take: Callable[[Entry, Tensor], None], overlay: Overlay | None = None, *,
        raises: bool = True, ranged: bool | None = None, folds: Mapping[str, float] | None = None,
        parameters: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        self._checkpoint, self._raises, self._ranged = checkpoint, raises, ranged
        self._overlay, self._folds = overlay, folds or {}
        # Energies of tensors that the base gives, to the bit or as a mask.
        self._kept: dict[str, float] = {}
        self._scanned: dict[str, Scanned] = {}
        self._first: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        self._estimates: dict[float, tuple[float, float]] = {}
        self._trellises = True
        self._norms = moments.norms_after(checkpoint.entries)
        self.n_elements, self._n_other, self._n_exact = 0, 0, 0
        contents: dict[tuple[object, ...], str] = {}
        for entry in checkpoint.entries:
            tensor = checkpoint.read(entry.name).cpu()
            take(entry, tensor)
            self._starts[entry.name] = self.n_elements
            if not is_coded(tensor):
                if tensor.is_floating_point():
                    exact = is_mask(tensor)
                    self._refuse_unless(exact or bool(tensor.isfinite().all()), entry, *NOT_FINITE)
                    self.n_elements += tensor.numel()
                    self._n_exact += tensor.numel() if exact else 0
                else:
                    self._n_other += raw_bytes(tensor).numel()
                continue
            self.n_elements += tensor.numel()
            one = parameters.get(entry.name) if parameters else None
            content = (one, tensor.dtype, tensor.shape, hashlib.sha256(raw_bytes(tensor).numpy().data).digest())
            self._first[entry.name] = contents.setdefault(content, entry.name)
            if self._first[entry.name] != entry.name:
                continue
            # Pruning by products leaves zeros of either sign, which no mask gives.
            if overlay is not None and overlay.gives(entry.name, tensor + 0.0):
                self._kept[entry.name] = squared_length(windows(tensor).reshape(-1))
                continue
            near = self._near(entry.name, tensor)
            energy = None if near is None else squared_length(windows(tensor).reshape(-1))
            self._scanned[entry.name] = scanned = Scanned.of(_difference(tensor, near), energy)
            finite = math.isfinite(scanned.energy) or bool(tensor.isfinite().all())
            self._refuse_unless(finite, entry, *NOT_FINITE)
            self._refuse_unless(scanned.largest <= MOST, entry, *TOO_LARGE)
        largest = [scanned.largest for scanned in self._scanned.values() if scanned.largest]
        self.largest, self.least = max(largest, default=0.0), min(largest, default=0.0)

    def _refuse_unless(self, good: bool, entry: Entry, reason: str, advice: str | None) -> None:
        if not good:
            raise CheckpointError(self._checkpoint.source, reason, entry.name, *([advice] if advice else []))

    @property
    def coded(self) -> bool:
        """Whether anything is to be rounded."""
        return self.largest > 0

    def round_plainly(self) -> bool:
        """Uses no trellis from now on; whether any was used before, or may have been."""
        before, self._trellises = self._trellises, False
        self._estimates.clear()
        return before and any(scanned.n_window == 1 for scanned in self._scanned.values())

    def estimate(self, step: float) -> tuple[float, float]:
        """Bytes of all planes and the relative error at a step, from the samples."""
        if step not in self._estimates:
            bits, error, energy = 0.0, 0.0, sum(self._kept.values())
            for scanned in self._scanned.values():
                own = step_for(step, scanned.largest)
                rule = scanned.sample.rule(own)
                saved = paths.SAVES if self._trellises and scanned.on_trellis(own, rule) else 0
                bits += scanned.share * rule.n_bits * (1 - saved)
                error += scanned.share * rule.error * own * own
                energy += scanned.energy
            self._estimates[step] = CODER * bits / 8, math.sqrt(error / energy) if energy else 0.0
        return self._estimates[step]

    def overhead(self, step: float) -> float:
        """A guess at what is beside the planes, in bytes, good enough to begin with."""
        n_coded = sum(scanned.n_weights for scanned in self._scanned.values())
        n_sections = sum(
            3 * max(1, math.log2(max(1.0, scanned.largest / step_for(step, scanned.largest))))
            for scanned in self._scanned.values()
        )
        floats = (self.n_elements - n_coded - self._n_exact) * (self._mantissa(step) + 4) / 8
        return 150 + 3 * len(self._checkpoint.entries) + 7 * n_sections + floats + self._n_other

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors that are rounded, those that repeat another left out."""
        return tuple(self._scanned)

    def near(self, name: str) -> tuple[str, Tensor] | None:
        """Name and tensor of the base of which a tensor is rounded as a difference."""
        return self._near(name, self._checkpoint.read(name).cpu())

    def draft(
        self, plan: float | Plan, spool: BinaryIO, progress: Callable[[Entry], None], *,
        given: Mapping[str, Leveled | Tensor] | None = None,
    ) -> Pass:  # fmt: skip
        """All tensors at a step, or each at those of a plan.

        Args:
            plan: Steps.
            spool: Takes coded sections.
            progress: Called after each tensor.
            given: Tensors that are rounded already, and others with new values; no batch norm is then moved.
        """
        plan = plan if isinstance(plan, Plan) else Plan(((self.n_elements, plan),))
        draft = Draft(spool, n_weights=self.n_elements, ranged=self._ranged, thorough=False)
        done = Pass(draft, plan.parts[0][1], energy=sum(self._kept.values()))
        moves = {layer: norm for layer, norm in self._norms.items() if given is None and layer not in self._kept}
        given = given or {}
        values = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        norms = BatchNorms(self._checkpoint, moves, self._folds, values, self._is_of_base)
        done.moved, done.folded = norms.moved, norms.folded

        def rounded_of(layer: str) -> Tensor:
            return self._leveled(self._first[layer], self._checkpoint.read(layer).cpu(), plan).dense

        for entry in self._checkpoint.entries:
            tensor = self._checkpoint.read(entry.name).cpu()
            of_norm = norms.value(entry.name, rounded_of)
            first = self._first.get(entry.name, entry.name)
            known = given.get(first) if of_norm is None else of_norm
            if first in self._kept:
                done.draft.add(entry.name, tensor + 0.0, self._over(entry))
            elif not is_coded(tensor):
                tensor = known if isinstance(known, Tensor) else tensor
                # One number that stands for two is far from either of the base.
                over = None if entry.name in norms.folded_names else self._over(entry)
                done.draft.add(entry.name, *self._narrowed(entry, tensor, plan, over))
            else:
                rounded = known if isinstance(known, Leveled) else self._leveled(first, tensor, plan)
                if first != entry.name:
                    record = Record(entry.name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=first)
                    done.errors[entry.name] = done.errors[first]
                    done.draft.append(rounded.dense, record)
                else:
                    rounded.store(done.draft, entry.name)
                    done.count(entry.name, rounded.error(tensor), self._scanned[entry.name].energy)
                    norms.take(entry.name, rounded.dense)
            progress(entry)
        return done

    def _near(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        return None if self._overlay is None else self._overlay.near(name, tensor)

    def _over(self, entry: Entry) -> tuple[str, Tensor] | None:
        return None if self._overlay is None else self._overlay.over(entry.name, entry.shape, entry.dtype)

    def _is_of_base(self, name: str, tensor: Tensor) -> bool:
        return self._overlay is not None and self._overlay.gives(name, tensor)

    def _mantissa(self, step: float) -> int:
        """Bits after the leading one that small floats keep."""
        if not self.coded:
            return 52
        error = self.estimate(2.0 ** (round(math.log2(step) * PER_OCTAVE) / PER_OCTAVE))[1]
        return min(52, max(3, math.ceil(math.log2(EXACTER / max(error, 2.0**-40))) - 1))

    def _narrowed(
        self, entry: Entry, tensor: Tensor, plan: Plan, found: tuple[str, Tensor] | None
    ) -> tuple[Tensor, tuple[str, Tensor] | None]:
        """The values to be stored of a small tensor and what they may be over: the base's where those are as near."""
        if not tensor.is_floating_point() or not tensor.numel() or is_mask(tensor):
            return tensor, found
        cuts = plan.cut(self._starts[entry.name], tensor.numel(), 1)
        parts = torch.split(tensor.flatten(), [n for n, _ in cuts])
        narrow = [mantissas.rounded(part, self._mantissa(step)) for part, (_, step) in zip(parts, cuts, strict=True)]
        rounded = (torch.cat(narrow) if len(narrow) > 1 else narrow[0]).reshape(tensor.shape)
        if self._overlay is None or found is None or found[1].dtype != tensor.dtype:
            return rounded, found
        apart = (found[1].double() - tensor.double()).abs()
        if bool((apart <= (rounded.double() - tensor.double()).abs().max()).all()):
            return found[1], found
        return self._overlay.rounded(tensor, found[1], max(self._mantissa(step) for _, step in cuts), rounded), found

    def _leveled(self, name: str, tensor: Tensor, plan: Plan) -> Leveled:
        near = self._near(name, tensor)
        scanned, scaled = self._scanned[name], _difference(tensor, near)
        n_window = scaled.shape[1]
        cuts = [(n // n_window, step_for(step, scanned.largest))
                for n, step in plan.cut(self._starts[name], scanned.n_weights, n_window)]  # fmt: skip
        rules = [scanned.sample.rule(step) for _, step in cuts]
        on_trellis = self._trellises and all(map(scanned.on_trellis, (step for _, step in cuts), rules))
        on_trellis = on_trellis and has_room(tensor, max(step for _, step in cuts))
        steps = [np.float32(paths.finer(step) if on_trellis else step) for _, step in cuts]
        parts = np.split(scaled, np.cumsum([n for n, _ in cuts])[:-1])
        for part, step in zip(parts, steps, strict=True):
            part /= step
        levels = paths.levels_of(scaled) if on_trellis else np.concatenate([*map(levels_of, parts, rules)])
        # Levels are those that each part has at its own step and so cost the same; they then stand for the finest step.
        for part, step in zip(parts, steps, strict=True):
            part *= step / min(steps)
        found = leveled(tensor, scaled, levels, float(min(steps)), near, trellis=on_trellis)
        return self.raised(name, found, tensor)

    def raised(self, name: str, found: Leveled, tensor: Tensor, seen: Moments | None = None) -> Leveled:
        """The length given back that rounding took: not where a norm follows, nor of what is added to a base."""
        return found.raised(tensor, seen) if self._raises and name not in self._norms and found.near is None else found


def _difference(tensor: Tensor, near: tuple[str, Tensor] | None) -> Floats:
    """What is to be coded of a tensor, as windows."""
    return windows(tensor if near is None else tensor.float() - near[1].float())
