"""The masked weight as a parametrisation: frozen base, trained scores, straight-through gradient.

A score s says how much a weight is wanted; the weight is kept where s > threshold. What is trained is the latent
v = s * sign(base): the gradient of the loss in v is then the gradient in the weight itself (times |base|, which is 1
for the signed base), so that the backward pass costs nothing, and Adam, whose step does not depend on the sign of a
coordinate, moves exactly as it would on s.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import bases

# Thresholds come from a sample of this many scores: a standard error of 0.4 % of the weights at density 0.5, of 0.1 %
# at density 0.03. Exact counts come once, at the end.
N_SAMPLE = 1 << 14


class MaskedWeight(nn.Module):
    """Parametrisation latent -> weight of one layer.

    Attributes:
        base: Frozen base weights, float [shape], never saved: the seed regenerates them.
        sign: Their signs; the same tensor for the signed base.
        threshold: float []; kept are the scores above it.
        scale: Learned factor, float [C, 1, ...] or [1, 1, ...].
        weight: Where the masked weights lie, float [shape].
        scratch: Room for a product in the backward pass, float [shape].
        sampled: Indices of the scores that thresholds are judged by.
        stale: Whether the latents, the scale or the threshold changed since the weights were last computed.
        kept: Final mask, float [shape], once it is fixed.
    """

    base: Tensor
    sign: Tensor
    threshold: Tensor
    weight: Tensor
    scratch: Tensor
    sampled: Tensor

    def __init__(self, weight: Tensor, *, kind: str, seed: int, stream: int, per_channel: bool, density: float) -> None:
        super().__init__()
        values = bases.base_weights(kind, seed, stream=stream, start=0, n_weights=weight.numel(), device=weight.device)
        self.kind, self.stream = kind, stream
        self.register_buffer("base", values.view(weight.shape), persistent=False)
        self.register_buffer("sign", self.base if kind == "signed" else self.base.sign(), persistent=False)
        self.register_buffer("threshold", torch.zeros((), device=weight.device), persistent=False)
        # Fresh memory costs more than the arithmetic: weights and products go to the same place every step.
        self.register_buffer("weight", torch.empty_like(self.base), persistent=False)
        self.register_buffer("scratch", torch.empty_like(self.base), persistent=False)
        self.register_buffer("sampled", _sample(weight.numel(), weight.device), persistent=False)
        self.stale = True
        self.kept: Tensor | None = None
        # He et al., "Delving Deep into Rectifiers" (2015), section 2.2, with the fan-in that the mask leaves.
        fan_in = max(1.0, weight[0].numel() * density)
        deviation = math.sqrt(2.0 / fan_in) / float(self.base.square().mean().sqrt())
        shape = (weight.shape[0] if per_channel else 1, *[1] * (weight.dim() - 1))
        self.scale = nn.Parameter(torch.full(shape, deviation, device=weight.device))

    def forward(self, latent: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept * self.scale
        # A module used twice in one pass must not touch weights that its first use has saved for backward. (Version
        # counters cannot tell: the fused Adam does not raise those of the latents.)
        if self.stale:
            with torch.no_grad():
                torch.mul(latent, self.sign, out=self.weight).gt_(self.threshold).mul_(self.base).mul_(self.scale)
            self.stale = False
        weight: Tensor = _StraightThrough.apply(latent, self.scale, self)  # type: ignore[no-untyped-call]
        return weight

    def scores(self, latent: Tensor) -> Tensor:
        """Scores float [shape] of the latents."""
        return latent.detach() * self.sign

    def refresh(self, latent: Tensor, density: float) -> None:
        """Puts the threshold where about ``density`` of the scores lie above it, judged by a sample."""
        sample = latent.detach().flatten()[self.sampled] * self.sign.flatten()[self.sampled]
        below = min(max(round((1 - density) * len(sample)), 1), len(sample))
        if sample.is_cuda:
            self.threshold.copy_(sample.sort().values[below - 1])
        else:
            self.threshold.copy_(sample.kthvalue(below).values)
        if density >= 1:
            self.threshold.fill_(-math.inf)

    def fix(self, latent: Tensor, density: float) -> Tensor:
        """Fixes the mask for good, with the exact count; equal scores are kept in order of index.

        Returns:
            bool [n_weights] on the CPU.
        """
        scores = self.scores(latent).flatten().cpu()
        n_kept = max(1, round(density * scores.numel()))
        order = scores.sort(descending=True, stable=True).indices
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[:n_kept]] = True
        self.kept = self.base * mask.view(self.base.shape).to(self.base.device)
        return mask


def _sample(n_weights: int, device: torch.device) -> Tensor:
    """Fixed random indices. An even stride would be a trap: where it divides the length of a row it sees few columns."""
    if n_weights <= N_SAMPLE:
        return torch.arange(n_weights, device=device)
    random = torch.Generator().manual_seed(n_weights)
    return torch.randint(n_weights, (N_SAMPLE,), generator=random).sort().values.to(device)


class _StraightThrough(torch.autograd.Function):
    """weight = scale * base * [score > threshold]; the mask's own derivative is taken as one.

    Ramanujan et al. (2020), section 3.2: the gradient of a score is that of the weight times the base weight. The
    scale is left out of it: it is the same for a whole channel, and Adam's step does not depend on it.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, layer: MaskedWeight) -> Tensor:
        ctx.save_for_backward(layer.weight, scale)
        ctx.layer = layer
        return layer.weight.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        layer: MaskedWeight = ctx.layer
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            rows = torch.mul(gradient, weight, out=layer.scratch).flatten(1).sum(1)
            total = (rows if scale.shape[0] == len(rows) else rows.sum()).view(scale.shape)
            # The derivative is that of the unscaled weights; a scale of exactly zero (0 / 0) stays where it is.
            scale_gradient = total.div_(scale).nan_to_num_(0.0)
        latent_gradient = None
        if ctx.needs_input_grad[0]:
            latent_gradient = gradient if layer.kind == "signed" else gradient * layer.base.abs()
        return latent_gradient, scale_gradient, None
