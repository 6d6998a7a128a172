"""A checkpoint as levels over a seeded base: one step for the whole model, found for a size or an error.

The search works on a sample of every large tensor; whole passes then say how far the sample was off. What is no large
floating matrix is kept: integers and booleans exactly, small floats to a mantissa whose error is far below that of the
weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .. import bases
from ..checkpoints import Checkpoint, Entry
from ..draft import Draft
from ..errors import CheckpointError
from ..integrity import NAME_OF_DTYPE, raw_bytes
from ..reconstruction import CodedTensor, reconstruct
from ..records import Record
from . import moments, rounding
from .overlay import Overlay
from .rounding import Floats, Levels

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


@dataclass
class Pass:
    """One whole pass over the checkpoint: the draft of a file and what it lost."""

    draft: Draft
    step: float
    errors: dict[str, float] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    error: float = 0.0
    energy: float = 0.0

    @property
    def relative_error(self) -> float:
        """Euclidean length of the difference over that of the weights in planes."""
        return math.sqrt(self.error / self.energy) if self.energy else 0.0


class LossyModel:
    """A checkpoint to be rounded; scanned once, then drafted at any step.

    Raises:
        CheckpointError: A floating tensor with NaN or infinity.
    """

    def __init__(
        self, checkpoint: Checkpoint, take: Callable[[Entry, Tensor], None], overlay: Overlay | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._overlay = overlay
        # Energies of weights that are not those of what is coded: of tensors over a base, and of those that it gives.
        self._energies: dict[str, float] = {}
        self._kept: dict[str, float] = {}
        self._samples: dict[str, tuple[Floats, float]] = {}
        self._norms = moments.norms_after(checkpoint.entries)
        self.largest = 0.0
        for entry in checkpoint.entries:
            tensor = checkpoint.read(entry.name).cpu()
            take(entry, tensor)
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                advice = "keep it with lossless / --lossless"
                raise CheckpointError(checkpoint.source, "NaN or infinity, which has no rounding", entry.name, advice)
            if overlay is not None and _is_coded(tensor):
                energy = float(tensor.float().square().sum(dtype=torch.float64))
                energies = self._kept if overlay.gives(entry.name, tensor + 0.0) else self._energies
                energies[entry.name] = 0.0 if entry.alias_of else energy
            if _is_coded(tensor) and entry.alias_of is None and entry.name not in self._kept:
                magnitude = _difference(tensor, self._near(entry.name, tensor)).reshape(-1)
                np.abs(magnitude, out=magnitude)
                if not np.isfinite(magnitude).all():
                    raise CheckpointError(checkpoint.source, "weights beyond binary32", entry.name)
                sample = _sampled(magnitude)
                self._samples[entry.name] = sample, len(magnitude) / len(sample)
                self.largest = max(self.largest, float(magnitude.max()))

    @property
    def coded(self) -> bool:
        """Whether anything is to be rounded."""
        return self.largest > 0

    def estimate(self, step: float) -> tuple[float, float]:
        """Bytes of all planes and the relative error at a step, from the samples."""
        bits, error, energy = 0.0, 0.0, sum(self._kept.values())
        for name, (sample, share) in self._samples.items():
            own = _step_for(step, float(sample.max(initial=0)))
            rule = rounding.learn(sample / np.float32(own))
            bits += share * rule.n_bits
            error += share * rule.error * own * own
            energy += self._energies.get(name, share * float(sample @ sample))
        return bits / 8, math.sqrt(error / energy) if energy else 0.0

    def draft(self, step: float, spool: BinaryIO, progress: Callable[[Entry], None]) -> Pass:
        """All tensors at a step."""
        done = Pass(Draft(spool, thorough=False), step, energy=sum(self._kept.values()))
        mantissa = self._mantissa(step)
        first: dict[tuple[object, ...], str] = {}
        levels_of: dict[str, CodedTensor] = {}
        statistics: dict[str, Tensor] = {}
        layers = {norm: layer for layer, norm in self._norms.items()}
        for stream, entry in enumerate(self._checkpoint.entries):
            tensor = self._checkpoint.read(entry.name).cpu()
            norm = entry.name.removesuffix(moments.MEAN).removesuffix(moments.VARIANCE)
            if norm != entry.name and norm in layers and layers[norm] not in self._kept:
                if entry.name not in statistics:
                    statistics |= self._moved(norm, layers[norm], levels_of.pop(layers[norm], None), step)
                    done.moved += [norm] if entry.name in statistics else []
                tensor = statistics.pop(entry.name, tensor)
            if not _is_coded(tensor) or entry.name in self._kept:
                # Pruning by products leaves zeros of either sign, which no mask gives.
                exact = entry.name in self._kept
                done.draft.add(
                    entry.name, *self._over(entry, tensor + 0.0 if exact else tensor, 52 if exact else mantissa)
                )
            else:
                content = (tensor.dtype, tensor.shape, hashlib.sha256(raw_bytes(tensor).numpy().data).digest())
                name = first.setdefault(content, entry.name)
                coded = self._coded(tensor, step, stream, sample=name)
                weights = reconstruct(coded, SEED)
                if name == entry.name:
                    _append(done, name, tensor, coded, weights)
                    if name in self._norms:
                        levels_of[name] = coded
                else:
                    record = Record(entry.name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=name)
                    weights = reconstruct(self._coded(tensor, step, self._stream(name), sample=name), SEED)
                    done.errors[entry.name] = done.errors[name]
                    done.draft.append(weights, record)
            progress(entry)
        return done

    def _near(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        return None if self._overlay is None else self._overlay.near(name, tensor)

    def _over(self, entry: Entry, tensor: Tensor, mantissa: int) -> tuple[Tensor, tuple[str, Tensor] | None]:
        """The values to be stored of a small tensor and what they may be over: the base's where those are as near."""
        rounded = _rounded(tensor, mantissa)
        found = None if self._overlay is None else self._overlay.over(entry.name, entry.shape, entry.dtype)
        if self._overlay is None or found is None or found[1].dtype != tensor.dtype:
            return rounded, found
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor, found
        origin = found[1].double()
        as_near = (origin - tensor.double()).abs() <= (rounded.double() - tensor.double()).abs().max()
        return (found[1] if bool(as_near.all()) else self._overlay.rounded(tensor, found[1], mantissa, rounded)), found

    def _stream(self, name: str) -> int:
        return next(index for index, entry in enumerate(self._checkpoint.entries) if entry.name == name)

    def _mantissa(self, step: float) -> int:
        """Bits after the leading one that small floats keep."""
        if not self.coded:
            return 52
        return min(52, max(3, math.ceil(math.log2(EXACTER / max(self.estimate(step)[1], 2.0**-40))) - 1))

    def _coded(self, tensor: Tensor, step: float, stream: int, *, sample: str) -> CodedTensor:
        near = self._near(sample, tensor)
        weights = _difference(tensor, near)
        magnitudes = self._samples[sample][0] if sample in self._samples else _sampled(np.abs(weights.reshape(-1)))
        step = _step_for(step, float(np.abs(weights).max(initial=0)))
        rule = rounding.learn(magnitudes / np.float32(step))
        scaled = weights / np.float32(step)
        levels = rounding.levels_of(scaled, rule)
        offset = rounding.centre(np.abs(scaled), np.abs(levels)) if rule.gains.size else 0.0
        coded = _coded_tensor(tensor, levels.reshape(-1), step, offset, stream)
        return coded if near is None else replace(coded, of=near[0], origin=near[1])

    def _moved(self, norm: str, layer: str, coded: CodedTensor | None, step: float) -> Mapping[str, Tensor]:
        """Statistics of a batch norm for its rounded layer; none where they do not fit it."""
        before = self._checkpoint.read(layer).cpu()
        if not _is_coded(before):
            return {}
        if coded is None:
            coded = self._coded(before, step, 0, sample=layer)
        shape = (before.shape[0], before.shape[1], -1)
        names = {entry.name for entry in self._checkpoint.entries}
        bias_name = layer.removesuffix("weight") + "bias"
        bias = self._checkpoint.read(bias_name).cpu().double().numpy() if bias_name in names else 0.0
        mean, variance = (self._checkpoint.read(norm + what).cpu() for what in (moments.MEAN, moments.VARIANCE))
        found = moments.moved(
            before.float().reshape(shape).numpy(), reconstruct(coded, SEED).float().reshape(shape).numpy(),
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


def _step_for(step: float, largest: float) -> float:
    """The step, or the least multiple by a power of two with which a tensor has no more than sixteen planes."""
    while largest / step > rounding.MAX_LEVEL - 1:
        step *= 2
    return step


def _is_coded(tensor: Tensor) -> bool:
    n_dimensions = sum(size > 1 for size in tensor.shape)
    return tensor.is_floating_point() and n_dimensions > 1 and tensor.numel() >= N_LEAST


def _floats(tensor: Tensor) -> Floats:
    """Weights as windows, float32 [n_windows, n_window], not shared with the tensor."""
    n_window = math.prod(tensor.shape[2:]) if tensor.dim() > 2 else 1
    array: Floats = tensor.detach().to(torch.float32, copy=True).reshape(-1, n_window).numpy()
    return array


def _difference(tensor: Tensor, near: tuple[str, Tensor] | None) -> Floats:
    """What is to be coded of a tensor, as :func:`_floats`."""
    return _floats(tensor) if near is None else _floats(tensor.float() - near[1].float())


def _sampled(magnitudes: Floats) -> Floats:
    # The stride is odd, so that it is no multiple of the size of a row, mostly.
    stride = len(magnitudes) // N_SAMPLE | 1
    return magnitudes[::stride].copy()


def _rounded(tensor: Tensor, mantissa: int) -> Tensor:
    """Floats with so many bits after the leading one, ties away from zero; all else as it is."""
    if not tensor.is_floating_point():
        return tensor
    wide = tensor.double()
    fraction, exponent = torch.frexp(wide)
    rounded = torch.ldexp((fraction * 2.0 ** (mantissa + 1)).round() / 2.0 ** (mantissa + 1), exponent)
    narrow = rounded.to(tensor.dtype)
    return torch.where(narrow.isfinite(), narrow, tensor)


def _coded_tensor(tensor: Tensor, levels: Levels, step: float, offset: float, stream: int) -> CodedTensor:
    magnitudes = np.abs(levels)
    n_planes = max(1, int(magnitudes.max(initial=0)).bit_length())
    packed = [np.packbits((magnitudes >> plane & 1).astype(bool), bitorder="little") for plane in range(n_planes)]
    base = bases.sign_bytes(SEED, stream=stream, start_byte=0, n_bytes=len(packed[0])).numpy()
    kept = np.packbits(magnitudes > 0, bitorder="little")
    flip = (np.packbits(levels < 0, bitorder="little") ^ base) & kept
    return CodedTensor(
        tuple(tensor.shape), stream, tuple(torch.from_numpy(plane) for plane in reversed(packed)),
        torch.tensor([step], dtype=torch.float32), flip=torch.from_numpy(flip),
        offset=torch.tensor([offset], dtype=torch.float32) if offset else None, dtype=tensor.dtype,
    )  # fmt: skip


def _append(done: Pass, name: str, tensor: Tensor, coded: CodedTensor, weights: Tensor) -> None:
    if coded.origin is not None and coded.origin.dtype == tensor.dtype and not any(map(torch.any, coded.planes)):
        weights = coded.origin
        done.draft.add(name, weights, (coded.of or "", weights))
    else:
        done.draft.add_coded(name, weights, coded)
    error = float((tensor.float() - weights.float()).square().sum(dtype=torch.float64))
    energy = float(tensor.float().square().sum(dtype=torch.float64))
    done.errors[name] = math.sqrt(error / energy) if energy else 0.0
    done.error += error
    done.energy += energy
