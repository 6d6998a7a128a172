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

from ..draft import Draft
from ..errors import CheckpointError
from ..integrity import NAME_OF_DTYPE, raw_bytes
from ..records import Record
from . import moments
from .checkpoints import Checkpoint, Entry
from .leveling import Leveled, leveled, squared_length, windows
from .rounding import MAX_LEVEL, Spectrum, levels_of

# Below this a tensor's record, scale and sections cost more than its planes save.
N_LEAST = 256
# Weights of a tensor that the search looks at.
N_SAMPLE = 1 << 16
# Small floats are this much more exact than the weights in planes.
EXACTER = 16
# Steps in which R-02 and float16 hold every scale.
SMALLEST_STEP, LARGEST_STEP = 2.0**-60, 2.0**60
NORMAL_F16 = (2.0**-14, 2.0**15)
SEED = 0
# Coders take about this factor more than the entropy of what they code.
CODER = 1.007
# Estimates are made at steps so many to an octave; between them they are straight lines.
PER_OCTAVE = 8
NOT_FINITE = "NaN or infinity, which has no rounding", "keep it with lossless / --lossless"


@dataclass
class Pass:
    """One whole pass over the checkpoint: the draft of a file and what it lost."""

    draft: Draft
    step: float
    errors: dict[str, float] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
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


@dataclass(frozen=True)
class Plan:
    """Steps for the floating elements of a checkpoint: each ``(end, step)`` holds up to that element, the first is 0.

    One part is one step for the whole model. Between two steps next to each other there may lie sizes that neither
    gives, since rounding takes a tensor, or all of them, to nothing at once. Sharing the weights between both is on
    the straight line between the two in size and in squared error (Cover and Thomas, "Elements of Information Theory",
    section 10.4, on the convexity of the rate-distortion function).
    """

    parts: tuple[tuple[int, float], ...] = ()

    def shortest(self) -> Plan:
        """Without parts that have no elements, and with equal ones joined."""
        parts: list[tuple[int, float]] = []
        for end, step in self.parts:
            if parts and parts[-1][1] == step:
                parts[-1] = max(end, parts[-1][0]), step
            elif end > (parts[-1][0] if parts else 0):
                parts.append((end, step))
        return Plan(tuple(parts) or self.parts[:1])

    def cut(self, start: int, n: int, multiple: int) -> list[tuple[int, float]]:
        """The parts of ``n`` elements from ``start`` on as (number of elements, step), cut at multiples."""
        found, last = [], 0
        for end, step in self.parts:
            place = min(n, max(0, end - start) // multiple * multiple)
            if place > last:
                found.append((place - last, step))
                last = place
        if last < n:
            found.append((n - last, self.parts[-1][1]))
        return found


class LossyModel:
    """A checkpoint to be rounded; scanned once, then drafted at any step.

    Attributes:
        largest: The largest magnitude of all weights that are rounded, 0 if there is none.
        n_elements: Floating elements, those which a :class:`Plan` counts.

    Raises:
        CheckpointError: A floating tensor with NaN or infinity.
    """

    def __init__(self, checkpoint: Checkpoint, take: Callable[[Entry, Tensor], None]) -> None:
        self._checkpoint = checkpoint
        self._scanned: dict[str, _Scanned] = {}
        self._first: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        self._estimates: dict[float, tuple[float, float]] = {}
        self._norms = moments.norms_after(checkpoint.entries)
        self.largest, self.n_elements, self._n_other = 0.0, 0, 0
        contents: dict[tuple[object, ...], str] = {}
        for entry in checkpoint.entries:
            tensor = checkpoint.read(entry.name).cpu()
            take(entry, tensor)
            self._starts[entry.name] = self.n_elements
            if not _is_coded(tensor):
                if tensor.is_floating_point():
                    self._refuse_unless(bool(tensor.isfinite().all()), entry, *NOT_FINITE)
                    self.n_elements += tensor.numel()
                else:
                    self._n_other += raw_bytes(tensor).numel()
                continue
            self.n_elements += tensor.numel()
            content = (tensor.dtype, tensor.shape, hashlib.sha256(raw_bytes(tensor).numpy().data).digest())
            self._first[entry.name] = contents.setdefault(content, entry.name)
            if self._first[entry.name] == entry.name:
                self._scanned[entry.name] = scanned = _scanned(tensor)
                finite = math.isfinite(scanned.energy) or bool(tensor.isfinite().all())
                self._refuse_unless(finite, entry, *NOT_FINITE)
                self._refuse_unless(math.isfinite(scanned.largest), entry, "weights beyond binary32", None)
                self.largest = max(self.largest, scanned.largest)

    def _refuse_unless(self, good: bool, entry: Entry, reason: str, advice: str | None) -> None:
        if not good:
            raise CheckpointError(self._checkpoint.source, reason, entry.name, *([advice] if advice else []))

    @property
    def coded(self) -> bool:
        """Whether anything is to be rounded."""
        return self.largest > 0

    def estimate(self, step: float) -> tuple[float, float]:
        """Bytes of all planes and the relative error at a step, from the samples."""
        if step not in self._estimates:
            bits = error = energy = 0.0
            for scanned in self._scanned.values():
                own = step_for(step, scanned.largest)
                rule = scanned.sample.rule(own)
                bits += scanned.share * rule.n_bits
                error += scanned.share * rule.error * own * own
                energy += scanned.share * scanned.sample.energy
            self._estimates[step] = CODER * bits / 8, math.sqrt(error / energy) if energy else 0.0
        return self._estimates[step]

    def overhead(self, step: float) -> float:
        """A guess at what is beside the planes, in bytes, good enough to begin with."""
        n_coded = sum(entry.n_weights for entry in self._scanned.values())
        n_sections = sum(
            3 * max(1, math.log2(max(1.0, scanned.largest / step_for(step, scanned.largest))))
            for scanned in self._scanned.values()
        )
        floats = (self.n_elements - n_coded) * (self._mantissa(step) + 4) / 8
        return 150 + 3 * len(self._checkpoint.entries) + 7 * n_sections + floats + self._n_other

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors that are rounded, those that repeat another left out."""
        return tuple(self._scanned)

    def draft(
        self, plan: float | Plan, spool: BinaryIO, progress: Callable[[Entry], None], *,
        given: Mapping[str, Leveled | Tensor] | None = None,
    ) -> Pass:  # fmt: skip
        """All tensors at a step, or each at those of a plan.

        Args:
            plan: Steps.
            spool: Takes coded sections.
            progress: Called after each tensor.
            given: Tensors that are rounded already, and others with new values; batch norms are then left alone.
        """
        plan = plan if isinstance(plan, Plan) else Plan(((self.n_elements, plan),))
        done = Pass(Draft(spool, thorough=False), plan.parts[0][1])
        dense: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        layers = {norm: layer for layer, norm in self._norms.items()} if given is None else {}
        given = given or {}
        for stream, entry in enumerate(self._checkpoint.entries):
            tensor = self._checkpoint.read(entry.name).cpu()
            norm = entry.name.removesuffix(moments.MEAN).removesuffix(moments.VARIANCE)
            if norm != entry.name and norm in layers:
                if entry.name not in statistics:
                    statistics |= self._moved(norm, layers[norm], dense.pop(layers[norm], None), plan)
                    done.moved += [norm] if entry.name in statistics else []
                tensor = statistics.pop(entry.name, tensor)
            first = self._first.get(entry.name, entry.name)
            known = given.get(first)
            if not _is_coded(tensor):
                tensor = known if isinstance(known, Tensor) else tensor
                done.draft.add(entry.name, self._narrowed(entry.name, tensor, plan))
            elif first != entry.name:
                record = Record(entry.name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=first)
                again = known if isinstance(known, Leveled) else self._leveled(first, tensor, plan)
                done.errors[entry.name] = done.errors[first]
                done.draft.append(again.dense, record)
            else:
                leveled = known if isinstance(known, Leveled) else self._leveled(entry.name, tensor, plan)
                record, parameters, sections = leveled.stored(entry.name, stream, seed=SEED)
                done.draft.append(leveled.dense, record, parameters=parameters, sections=sections)
                done.count(entry.name, leveled.error(tensor), self._scanned[entry.name].energy)
                if entry.name in self._norms:
                    dense[entry.name] = leveled.dense
            progress(entry)
        return done

    def _mantissa(self, step: float) -> int:
        """Bits after the leading one that small floats keep."""
        if not self.coded:
            return 52
        error = self.estimate(2.0 ** (round(math.log2(step) * PER_OCTAVE) / PER_OCTAVE))[1]
        return min(52, max(3, math.ceil(math.log2(EXACTER / max(error, 2.0**-40))) - 1))

    def _narrowed(self, name: str, tensor: Tensor, plan: Plan) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        cuts = plan.cut(self._starts[name], tensor.numel(), 1)
        parts = torch.split(tensor.flatten(), [n for n, _ in cuts])
        rounded = [_rounded(part, self._mantissa(step)) for part, (_, step) in zip(parts, cuts, strict=True)]
        return (torch.cat(rounded) if len(rounded) > 1 else rounded[0]).reshape(tensor.shape)

    def _leveled(self, name: str, tensor: Tensor, plan: Plan) -> Leveled:
        scanned, scaled = self._scanned[name], windows(tensor)
        n_window, levels, start = scaled.shape[1], [], 0
        cuts = [(n // n_window, step_for(step, scanned.largest))
                for n, step in plan.cut(self._starts[name], scanned.n_weights, n_window)]  # fmt: skip
        if len(cuts) == 1:
            scaled /= np.float32(cuts[0][1])
            return leveled(tensor, scaled, levels_of(scaled, scanned.sample.rule(cuts[0][1])), cuts[0][1])
        # Levels are those that each part has at its own step and so cost the same; they then stand for the finest step.
        finest = min(step for _, step in cuts)
        for n, step in cuts:
            levels.append(levels_of(scaled[start : start + n] / np.float32(step), scanned.sample.rule(step)))
            start += n
        return leveled(tensor, scaled / np.float32(finest), np.concatenate(levels), finest)

    def _moved(self, norm: str, layer: str, after: Tensor | None, plan: Plan) -> Mapping[str, Tensor]:
        """Statistics of a batch norm for its rounded layer; none where they do not fit it."""
        before = self._checkpoint.read(layer).cpu()
        if not _is_coded(before):
            return {}
        if after is None:
            after = self._leveled(self._first[layer], before, plan).dense
        shape = (before.shape[0], before.shape[1], -1)
        names = {entry.name for entry in self._checkpoint.entries}
        bias_name = layer.removesuffix("weight") + "bias"
        bias = self._checkpoint.read(bias_name).cpu().double().numpy() if bias_name in names else 0.0
        mean, variance = (self._checkpoint.read(norm + what).cpu() for what in (moments.MEAN, moments.VARIANCE))
        found = moments.moved(
            before.float().reshape(shape).numpy(), after.float().reshape(shape).numpy(),
            mean.double().numpy(), variance.double().numpy(), bias=bias,
        )  # fmt: skip
        if found is None:
            return {}
        values = (torch.from_numpy(part).to(old.dtype) for part, old in zip(found, (mean, variance), strict=True))
        return dict(zip((norm + moments.MEAN, norm + moments.VARIANCE), values, strict=True))


def grid(step: float) -> float:
    """The nearest step that two bytes hold where its size allows."""
    step = min(LARGEST_STEP, max(SMALLEST_STEP, step))
    if NORMAL_F16[0] <= step <= NORMAL_F16[1]:
        return float(np.float16(step))
    return float(torch.tensor(step).bfloat16())


def step_for(step: float, largest: float) -> float:
    """The step, or the least multiple by a power of two with which a tensor has no more than sixteen planes."""
    while largest / step > MAX_LEVEL - 1:
        step *= 2
    return step


def _is_coded(tensor: Tensor) -> bool:
    n_dimensions = sum(size > 1 for size in tensor.shape)
    return tensor.is_floating_point() and n_dimensions > 1 and tensor.numel() >= N_LEAST


@dataclass(frozen=True, eq=False)
class _Scanned:
    """What is remembered of a tensor: a sample of its magnitudes, of which each stands for ``share`` weights."""

    sample: Spectrum
    share: float
    n_weights: int
    largest: float
    energy: float


def _scanned(tensor: Tensor) -> _Scanned:
    magnitudes = windows(tensor).reshape(-1)
    np.abs(magnitudes, out=magnitudes)
    # The stride is odd, so that it is no multiple of the size of a row, mostly.
    sample = Spectrum.of(magnitudes[:: len(magnitudes) // N_SAMPLE | 1])
    n = len(magnitudes)
    return _Scanned(sample, n / len(sample.ascending), n, float(magnitudes.max()), squared_length(magnitudes))


def _rounded(tensor: Tensor, mantissa: int) -> Tensor:
    """Floats with so many bits after the leading one, ties away from zero."""
    wide = tensor.double()
    fraction, exponent = torch.frexp(wide)
    rounded = torch.ldexp((fraction * 2.0 ** (mantissa + 1)).round() / 2.0 ** (mantissa + 1), exponent)
    narrow = rounded.to(tensor.dtype)
    return torch.where(narrow.isfinite(), narrow, tensor)
