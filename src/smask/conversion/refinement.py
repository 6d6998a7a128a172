"""Weights trained again under their own rounding, so that the rounded network does what the given one did.

The network runs on rounded weights; gradients pass the rounding as if it were not there and move the weights behind it
(straight-through: Bengio et al. 2013, arXiv:1308.3432, section 3.4). What it learns from are the outputs of the given
network (Hinton et al. 2015, arXiv:1503.02531; for rounded students Polino et al., "Model compression via distillation
and quantization", ICLR 2018): inputs need no labels.

The size is not an outcome but kept: every few steps all weights get the step at which their planes have the bytes they
may have. Weights whose bits are worth less than they cost are drawn to the next cheaper level: where a loss L comes
from rounding alone it falls as ``2**(-2 * bits / n)`` with n weights that are coded finely, so a bit is worth
``2 ln 2 L / n`` (Cover and Thomas, "Elements of Information Theory", section 10.3).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArgumentError, DivergedError
from ..search.distillation import divergence, outputs_of
from .inputs import Inputs
from .leveling import Leveled, leveled, windows
from .lossy import CODER
from .plan import grid, step_for
from .rounding import Rule, Spectrum
from .scanned import N_SAMPLE
from .statistics import Statistics, live

N_BATCH = 64
# Steps after which the rules are made anew.
N_REFRESH = 20
# An update moves a weight by about so much of its step: what is right for a coarse step undoes a fine rounding. Chosen
# on training images that were set aside (ResNet-20 at 30 kB, 800 updates): agreement with the given network 93.1 % at
# 1/333, 93.6 % at 1/200, 92.7 % at 1/125.
RATE = 1 / 200
# And a norm or a bias by so much.
FLOAT_RATE = 1e-3
# The part of all updates in which the rates rise to their height; they then fall along a cosine.
WARM_UP = 0.05
# Weight of the newest loss in the running mean that says what a bit is worth.
NEWEST = 0.05
# Octaves between steps that are as good as the same.
FINEST = 2.0**-8


class Refinement:
    """A network in training on its rounded weights.

    Args:
        teacher: The given network in float32; stays as it is.
        names: Its parameters that are coded.
        inputs: What it is taught on.
        near: Names and tensors of a base, by parameter: of these the difference from that is rounded.
        still: Parameters that stay as they are.

    Attributes:
        student: The copy in training; its parameters in ``names`` are the weights behind the rounding.
        loss: Running mean of the distance from the teacher.
    """

    def __init__(
        self, teacher: nn.Module, names: Sequence[str], inputs: Inputs, *,
        near: Mapping[str, tuple[str, Tensor]] | None = None, still: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._names, self._inputs, self._near, self._still = tuple(names), inputs, near or {}, still
        self._statistics = Statistics(teacher, inputs.all())
        # Both go by the same batches, so that nothing but rounding is between them.
        self._teacher, self.student = live(copy.deepcopy(teacher)), live(copy.deepcopy(teacher))
        # Each once, under the name that is coded if it has one.
        named = dict(self.student.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in reversed(named.items())}
        first |= {id(named[name]): name for name in names}
        self._parameters = {name: named[name] for name in named if first[id(named[name])] == name}
        self._spectra: dict[str, tuple[Spectrum, float]] = {}
        self._look()
        self.loss = math.nan

    def run(self, n_bytes: float, n_steps: int, *, progress: Callable[[int, int, float], None] | None = None) -> None:
        """Trains with planes of so many bytes.

        Args:
            n_bytes: Of all planes together.
            n_steps: Batches of :data:`N_BATCH` inputs.
            progress: Called after each with the steps done, those of all, and the running loss.

        Raises:
            DivergedError: The loss is not finite.
            ArgumentError: The model gives outputs without gradients.
        """
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(parameter.is_floating_point() and name not in self._still)
        # The rate of a weight goes by its step, so that each has its own group; last the one of norms and biases.
        floats = [value for name, value in self._parameters.items() if name not in self._names and value.requires_grad]
        parts = [[self._parameters[name]] for name in self._names] + [floats]
        optimizer = torch.optim.Adam([{"params": part} for part in parts])
        n_warm = max(1, round(WARM_UP * n_steps))
        rules: dict[str, tuple[Rule, float]] = {}
        n_kept = 0
        for step in range(n_steps):
            if step % N_REFRESH == 0:
                rules = self.rules(self.step_of(n_bytes))
                n_kept = sum(int((self._levels(name, *rules[name]) > 0).sum()) for name in self._names)
            part = min(1.0, (step + 1) / n_warm) * (1 + math.cos(math.pi * step / n_steps)) / 2
            rates = [RATE * rules[name][1] for name in self._names] + [FLOAT_RATE]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = part * rate
            batch = self._inputs.batch(N_BATCH)
            with torch.no_grad():
                wanted = outputs_of(self._teacher(batch))
            got = outputs_of(torch.func.functional_call(self.student, self._rounded(rules), (batch,)))
            loss = divergence(got, wanted)
            if not loss.requires_grad:
                raise ArgumentError("refine", n_steps, "a model whose outputs have gradients, or 0")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            newest = float(loss.detach())
            if not math.isfinite(newest):
                raise DivergedError(step + 1, newest, None, "convert without training: refine=0, no --refine")
            self.loss = newest if math.isnan(self.loss) else (1 - NEWEST) * self.loss + NEWEST * newest
            self._charge(rules, 2 * math.log(2) * self.loss / max(1, n_kept))
            optimizer.step()
            if progress is not None:
                progress(step + 1, n_steps, self.loss)
        self._look()

    def step_of(self, n_bytes: float) -> float:
        """The step at which the planes of the weights, as they are now, have so many bytes by estimate."""
        self._look()
        largest = [max(2.0**-60, spectrum.largest) for spectrum, _ in self._spectra.values() if spectrum.largest]
        low, high = math.log2(min(largest, default=1.0)) - 15, math.log2(max(largest, default=1.0)) + 2
        while high - low > FINEST:
            middle = (low + high) / 2
            low, high = (middle, high) if self._estimate(2.0**middle) > n_bytes else (low, middle)
        return grid(2.0**high)

    def n_bytes(self, step: float) -> float:
        """Bytes of all planes at a step, by estimate."""
        self._look()
        return self._estimate(step)

    def _estimate(self, step: float) -> float:
        bits = (
            share * spectrum.rule(step_for(step, spectrum.largest)).n_bits for spectrum, share in self._spectra.values()
        )
        return CODER * sum(bits) / 8

    def rules(self, step: float) -> dict[str, tuple[Rule, float]]:
        """The rule of each weight tensor, and the step that it has."""
        own = {name: step_for(step, self._spectra[name][0].largest) for name in self._names}
        return {name: (self._spectra[name][0].rule(own[name]), own[name]) for name in self._names}

    def leveled(self, step: float, dtypes: Mapping[str, torch.dtype]) -> dict[str, Leveled]:
        """The weights as they are now, rounded at a step."""
        found = {}
        for name, (rule, own) in self.rules(step).items():
            away = self.away(name)
            signed = self._levels(name, rule, own) * away.sign().to(torch.int32)
            scaled = windows(away) / np.float32(own)
            levels = signed.numpy().reshape(scaled.shape).astype(np.int32)
            weights = self._parameters[name].detach().to(dtypes[name])
            found[name] = leveled(weights, scaled, levels, own, self._near.get(name))
        return found

    def away(self, name: str) -> Tensor:
        """What is rounded of a parameter: its weights, or their difference from the base."""
        weights, near = self._parameters[name].detach(), self._near.get(name)
        return weights if near is None else weights - near[1].float()

    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Gives batch norms the statistics that follow from weights, by name, in place of those behind the rounding."""
        self._statistics.follow(self.student, {name: weight.detach().float() for name, weight in weights.items()})

    @torch.no_grad()
    def distance(self, weights: Mapping[str, Tensor], *, n: int) -> float:
        """How far the network with such weights is from the given one, over so many inputs."""
        dense, total, n_seen = {name: weight.float() for name, weight in weights.items()}, 0.0, 0
        for batch in self._inputs.some(n):
            got = outputs_of(torch.func.functional_call(self.student, dense, (batch,)))
            total += len(batch) * float(divergence(got, outputs_of(self._teacher(batch))))
            n_seen += len(batch)
        return total / n_seen

    def floats(self) -> dict[str, Tensor]:
        """Everything that is not rounded, as it is now."""
        return {name: tensor for name, tensor in self.student.state_dict().items() if name not in self._names}

    def _look(self) -> None:
        """Takes samples of the weights as they are now."""
        for name in self._names:
            magnitudes = self.away(name).abs().reshape(-1).numpy()
            sample = magnitudes[:: len(magnitudes) // N_SAMPLE | 1]
            self._spectra[name] = Spectrum.of(sample), len(magnitudes) / len(sample)

    def _levels(self, name: str, rule: Rule, step: float) -> Tensor:
        """Levels of the magnitudes, int32."""
        scaled = self.away(name).abs().contiguous() / step
        return torch.bucketize(scaled, torch.from_numpy(rule.edges), right=True, out_int32=True)

    def _rounded(self, rules: Mapping[str, tuple[Rule, float]]) -> dict[str, Tensor]:
        found = {}
        for name, (rule, step) in rules.items():
            weights, away, levels = self._parameters[name], self.away(name), self._levels(name, rule, step)
            values = torch.where(levels > 0, levels - rule.offset, 0.0) * step * away.sign()
            found[name] = weights + (values - away)
        return found

    def _charge(self, rules: Mapping[str, tuple[Rule, float]], price: float) -> None:
        """Adds what bits cost to the gradients, in units of the loss a bit."""
        for name, (rule, step) in rules.items():
            weights = self._parameters[name]
            if not len(rule.gains) or weights.grad is None:
                continue
            away = self.away(name)
            scaled = away.abs() / step
            lower = scaled.clamp_(max=len(rule.gains) - 1).to(torch.int64)
            slope = torch.from_numpy(rule.gains)[lower] * (price / step)
            weights.grad.add_(slope.mul_(away.sign()))
