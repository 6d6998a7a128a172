"""One masked weight: frozen base, trained scores, and what a method makes of them.

A score s says how much a weight is wanted. What is trained is the latent v = s * sign(base): where the mask's own
derivative is taken as one, the gradient of the loss in v is the gradient in the weight itself (times |base|, which is 1
for the signed base), so that the backward pass costs nothing, and Adam, whose step does not depend on the sign of a
coordinate, moves exactly as it would on s. Muon turns matrices of latents, as it would those of trained weights.

The module keeps its own weight parameter. Before a pass the masked weights are written into it; after the backward
pass its gradient is handed on to latents and scale. Autograd sees an ordinary module, whatever that module is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import bases
from ..fills import flushed
from .ramps import N_ON_RAMP, Ramp
from .ranks import mixed
from .rows import Rows
from .sample import Sample, in_order

if TYPE_CHECKING:
    from .methods import Method

# Where masks have probabilities: so far above its threshold, fifty default steps of Adam, a score is kept with 73 %.
TEMPERATURE = 0.05
# Rows of fewer weights have few (ramps): the 27 of a first convolution are, 144 are not. The 16 and 32 of shortcuts,
# beside another path, did not matter.
N_FEW = 64
# Too small to change any other scale, and the smallest that no processor flushes to zero.
TINY = torch.finfo(torch.float32).tiny


class MaskedWeight:
    """Scores, base and scale of one weight parameter.

    Attributes:
        method: Makes weights of scores and scores' gradients of weights' gradients.
        parameter: The module's parameter, float32 [C, ...].
        shape: [C, ...].
        weight: The parameter, or where its rows are shared among ranks those of this rank, float32 [c, ...]. Everything
            below but the threshold has these rows too. From where its gradient is taken to where it is written again
            its memory is that of the arithmetic: fewer arrays, more of which stay in the cache.
        latent: Trained latents, float32 [c, ...].
        scale: Trained factor, float32 [c, 1, ...] or [1, 1, ...].
        base: Frozen base weights, never saved: the seed regenerates them, or they are those of ``origin``.
        kind: Of the base: ``file`` where there is an origin.
        origin: A tensor of another checkpoint, floating [C, ...], finite in binary32, or None.
        n_usable: Weights whose base is not zero, on all ranks; no others are ever kept.
        sign: Their signs; the same tensor for the signed base.
        threshold: n_coats numbers of float32, highest last; a weight has a coat for each that its rank is above.
        foot: The rank that so many times as many weights are above as kept, see :mod:`smask.search.ramps`.
        graded: Base times the level that a weight has while it is kept, float32 [c, ...], since the last
            :meth:`grade`; the base itself with one level.
        density: Kept weights over usable ones at the end.
        now: The same at the last refresh.
        kept: Base weights times final levels once these are fixed, else None.
        mean_gradient: Running mean of the gradients of the weights, float32 [c, ...], where the method wants it.
        bias: What channels say that keep no weight, [C] on all ranks: nothing from where masks are fixed, as most of it
            is never heard and all of it has to be stored. None where it stays.
        ramp: Around the threshold, placed anew whenever that is.
        stride: Distances between scores over the usual ones, see :attr:`smask.search.schedule.Schedule.stride`.
        random: Draws masks where the method does; :meth:`seed_draws` says from where on.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        method: Method,
        *,
        kind: str,
        seed: int,
        stream: int,
        per_channel: bool,
        density: float,
        fan_in: float,
        rows: Rows | None = None,
        origin: Tensor | None = None,
        bias: Tensor | None = None,
        stride: float = 1.0,
    ) -> None:
        n_row, device = weight[0].numel() if weight.shape[0] else 0, weight.device
        self._rows = rows = rows or Rows(0, weight.shape[0], None)
        self.parameter, self.shape = weight, weight.shape
        self.weight: Tensor = rows.local(weight)
        self.origin, self.kind = origin, kind if origin is None else "file"
        self.n_usable, usable = self.n_weights, None
        if origin is None:
            values = bases.base_weights(
                kind, seed, stream=stream, start=rows.first * n_row, n_weights=rows.n * n_row, device=device
            )
        else:
            whole = flushed(origin.to(device, torch.float32))
            values, usable = whole[rows.first : rows.last], whole.flatten().nonzero().flatten()
            self.n_usable = len(usable)
        self.method, self.stream, self._seed = method, stream, seed
        self.density, self.now, self.stride = density, density, stride
        self.base = values.reshape(self.weight.shape)
        self.sign = self.base if self.kind == "signed" else self.base.sign()
        self.bias = bias if origin is None else None
        self._lowest = torch.zeros((), device=device) if device.type == "cuda" else None
        self.threshold, self.foot, self.ramp = (0.0,) * method.n_coats, 0.0, Ramp(device)
        self.graded = self.base.clone() if method.n_coats > 1 else self.base
        self.kept: Tensor | None = None
        self._silent: Tensor | None = None
        self.latent = nn.Parameter(self.sign.clone())
        # He et al., "Delving Deep into Rectifiers" (2015), section 2.2, with the fan-in that the mask leaves.
        self.deviation = math.sqrt(2.0 / max(1.0, fan_in))
        shape = (rows.n if per_channel else 1, *[1] * (weight.dim() - 1))
        first = 1.0  # trained weights have the spread that they need
        if origin is None:
            first = self.deviation / math.sqrt(float(rows.sum(self.base.square().sum())) / max(1, self.n_weights))
        self._within = [*range(1, weight.dim())]
        self.scale, self.per_channel = nn.Parameter(torch.full(shape, first, device=device)), per_channel
        candidates = self.n_weights if usable is None or not self.n_usable else usable
        self._sampled = Sample(candidates, n_row, rows, device)
        self.random = torch.Generator(device)
        self.mean_gradient = torch.zeros_like(self.base) if method.averages else None

    @property
    def threshold(self) -> tuple[float, ...]:
        """As above."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: tuple[float, ...]) -> None:
        self._threshold = threshold
        if self._lowest is not None:
            self._lowest.fill_(threshold[0])

    @property
    def lowest(self) -> float | Tensor:
        """The lowest threshold; on a CUDA device in memory there, where a recorded step sees it change."""
        return self._threshold[0] if self._lowest is None else self._lowest

    @cached_property
    def scratch(self) -> Tensor:
        """More memory for the arithmetic, float32 [c, ...], for methods that want it: fresh memory costs more."""
        return torch.empty_like(self.base)

    @property
    def n_weights(self) -> int:
        """Number of weights, on all ranks."""
        return math.prod(self.shape)

    @property
    def has_few(self) -> bool:
        """Whether each of the weights of a row matters to it."""
        return math.prod(self.shape[1:]) < N_FEW

    def part_of_all(self, density: float) -> float:
        """Kept weights over all weights, those without a base among them."""
        return density * self.n_usable / max(1, self.n_weights)

    @property
    def is_shared(self) -> bool:
        """Whether other ranks have other rows."""
        return self._rows.ranks is not None

    def seed_draws(self, step: int) -> None:
        """Makes masks that are drawn now depend on the step alone, on every rank."""
        self.random.manual_seed(mixed(self._seed, self.stream, step, self._rows.first))

    def write(self) -> None:
        """Puts the masked weights into the module; to be called without gradients (``torch.no_grad``)."""
        unscaled = self.method.masked(self) if self.kept is None else self.kept
        torch.mul(unscaled, self.scale, out=self.weight)
        if self._silent is not None and self.bias is not None:
            self.bias.masked_fill_(self._silent, 0.0)

    def take_gradient(self, step: int = 0) -> None:
        """Hands the gradient of the written weight on to latents and, where it is their turn, to the scale.

        To be called without gradients (``torch.no_grad``). That of the latents leaves out the scale, the same for a
        whole channel: Adam's step does not depend on it, and Muon's was chosen without it.
        """
        gradient, self.parameter.grad = self.parameter.grad, None
        if gradient is None:  # the module took no part in this pass
            self.latent.grad = self.scale.grad = None
            return
        gradient = self._rows.local(gradient)
        if self.scale.requires_grad and (self.kept is not None or step % self.method.n_between_scales == 0):
            product = self.weight.mul_(gradient)
            total = product.sum(self._within, keepdim=True) if self.per_channel else self._rows.sum(product.sum())
            # The derivative is that of the unscaled weights; a scale of exactly zero (0 / TINY) stays where it is.
            self.scale.grad = total.view(self.scale.shape).div_(self.scale + TINY)
        if self.kept is None:
            self.latent.grad = self.method.gradient(self, gradient)

    def ranks(self) -> Tensor:
        """What weights are ranked by, float32 [c, ...], in the memory of the weight; without gradients as above."""
        if self.method.by_magnitude:
            return torch.abs(self.latent, out=self.weight)
        return torch.mul(self.latent, self.sign, out=self.weight)

    def scores(self) -> Tensor:
        """Scores, float32 [C, ...]."""
        return self.latent.detach() * self.sign

    def sample(self) -> Tensor:
        """Ranks of the sampled weights, float32 [n]."""
        latent, sign = self._sampled.of(self.latent.detach()), self._sampled.of(self.sign)
        return self._sampled.together(latent.abs() if self.method.by_magnitude else latent * sign)

    @torch.no_grad()
    def refresh(self, density: float) -> None:
        """Puts thresholds where about ``density`` of the ranks lie above the lowest, a part of these above the next."""
        self.now = density
        n_coats = len(self.threshold)
        if density >= 1 and n_coats == 1:
            self.threshold = (-math.inf,)
            return
        sample = self.sample()
        parts = [density * (n_coats - coat) / n_coats for coat in range(n_coats)]
        # Never all of them: a layer without any weight has no gradient that could bring one back.
        last = max(1, len(sample) - 1)
        reached = (*parts, min(1.0, N_ON_RAMP * density))
        *found, self.foot = in_order(
            sample, [min(max(round((1 - part) * len(sample)), 1), last) - 1 for part in reached]
        )
        self.threshold = tuple(-math.inf if part >= 1 else at for part, at in zip(parts, found, strict=True))

    def grade(self) -> None:
        """Gives weights the levels that they have by their ranks now, the lowest to those that are not kept."""
        if len(self.threshold) == 1:
            return
        (first, *others), ranks, step = self.threshold[1:], self.ranks(), torch.ops.aten.threshold_backward.grad_input
        step(self.base, ranks, first, grad_input=self.graded)
        self.graded.add_(self.base)
        for place, threshold in enumerate(others, 1):  # the last may overwrite the ranks: fresh memory costs more
            out = ranks if place == len(others) else torch.empty_like(ranks)
            self.graded.add_(step(self.base, ranks, threshold, grad_input=out))

    @torch.no_grad()
    def order(self) -> Tensor:
        """Indices of the weights, int64 [n_weights] on the CPU, highest rank first; equal ones in order of index."""
        ranks = self.latent.detach().abs() if self.method.by_magnitude else self.scores()
        ranks = self.whole(ranks if self.origin is None else ranks.masked_fill(self.base == 0, -math.inf))
        return ranks.flatten().sort(descending=True, stable=True).indices.cpu()

    def keep(self, levels: Tensor) -> None:
        """Fixes levels for good: uint8 [n_weights] on the CPU, 0 for weights that are not kept."""
        latent = self.latent.detach()
        signed = torch.where(latent * self.sign < 0, -self.base, self.base) if self.method.flips else self.base
        self.kept = signed * self.part(levels.view(self.shape)).to(self.base.device)
        self._silent = self.silent(levels).to(self.base.device)
        self.latent.grad = None
        self.method.settle(self)

    def silent(self, levels: Tensor) -> Tensor:
        """Channels that keep no weight, bool [C] on the CPU, of levels uint8 [n_weights]."""
        return ~(levels.view(self.shape[0], -1) > 0).any(1)

    def flips(self) -> Tensor:
        """Weights whose sign is not that of the base, bool [n_weights] on the CPU."""
        return self.whole((self.latent.detach() * self.sign < 0).float()).flatten().cpu() > 0

    def scales(self) -> Tensor:
        """All scales, float32 [C, 1, ...] or [1, 1, ...]."""
        return self.whole(self.scale.detach()) if self.per_channel else self.scale.detach()

    def whole(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, where rows are shared; else the given ones."""
        return self._rows.whole(rows, self.shape[0])

    def part(self, whole: Tensor) -> Tensor:
        """This rank's rows."""
        return whole[self._rows.first : self._rows.last] if self.is_shared else whole

    def total(self, value: Tensor) -> Tensor:
        """The sum of what the ranks have, where rows are shared."""
        return self._rows.sum(value)

    def tensors(self) -> dict[str, Tensor]:
        """What is not regenerated from the seed, not copied."""
        found = {"latent": self.whole(self.latent.detach()), "scale": self.scales()}
        found |= {"threshold": torch.tensor(self.threshold), "foot": torch.tensor(self.foot)}
        found |= {"graded": self.whole(self.graded)} if self.method.n_coats > 1 else {}
        return found if self.mean_gradient is None else found | {"mean_gradient": self.whole(self.mean_gradient)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], *, levels: Tensor | None) -> None:
        """Takes over what :meth:`tensors` gave, and the levels if they were fixed then."""
        self.latent.copy_(self.part(tensors["latent"]))
        self.scale.copy_(self.part(tensors["scale"]) if self.per_channel else tensors["scale"])
        self.threshold, self.foot = tuple(tensors["threshold"].tolist()), float(tensors["foot"])
        if self.method.n_coats > 1:
            self.graded.copy_(self.part(tensors["graded"]))
        if self.mean_gradient is not None:
            self.mean_gradient.copy_(self.part(tensors["mean_gradient"]))
        if levels is not None:
            self.keep(levels)
