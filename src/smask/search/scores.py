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

# Thresholds come from a sample of this many scores: a standard error of 0.2 % of the weights at density 0.5.
N_SAMPLE = 1 << 16


class MaskedWeight(nn.Module):
    """Parametrisation latent -> weight of one layer.

    Attributes:
        base: Frozen base weights, float [shape], never saved: the seed regenerates them.
        sign: Their signs; the same tensor for the signed base.
        threshold: float []; kept are the scores above it.
        scale: Learned factor, float [C, 1, ...] or [1, 1, ...].
        kept: Final mask, float [shape], once it is fixed.
    """

    base: Tensor
    sign: Tensor
    threshold: Tensor

    def __init__(self, weight: Tensor, *, kind: str, seed: int, stream: int, per_channel: bool, density: float) -> None:
        super().__init__()
        values = bases.base_weights(kind, seed, stream=stream, start=0, n_weights=weight.numel(), device=weight.device)
        self.kind, self.stream = kind, stream
        self.register_buffer("base", values.view(weight.shape), persistent=False)
        self.register_buffer("sign", self.base if kind == "signed" else self.base.sign(), persistent=False)
        self.register_buffer("threshold", torch.zeros((), device=weight.device), persistent=False)
        self.kept: Tensor | None = None
        # He et al., "Delving Deep into Rectifiers" (2015), section 2.2, with the fan-in that the mask leaves.
        fan_in = max(1.0, weight[0].numel() * density)
        deviation = math.sqrt(2.0 / fan_in) / float(self.base.square().mean().sqrt())
        shape = (weight.shape[0] if per_channel else 1, *[1] * (weight.dim() - 1))
        self.scale = nn.Parameter(torch.full(shape, deviation, device=weight.device))

    def forward(self, latent: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept * self.scale
        weight: Tensor = _StraightThrough.apply(
            latent, self.scale, self.base, self.sign, self.threshold, self.kind == "signed"
        )
        return weight

    def scores(self, latent: Tensor) -> Tensor:
        """Scores float [shape] of the latents."""
        return latent.detach() * self.sign

    def refresh(self, latent: Tensor, density: float) -> None:
        """Puts the threshold where about ``density`` of the scores lie above it, judged by an even sample."""
        flat = latent.detach().flatten()
        step = max(1, flat.numel() // N_SAMPLE)
        sample = flat[::step] * self.sign.flatten()[::step]
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


class _StraightThrough(torch.autograd.Function):
    """weight = scale * base * [score > threshold]; the mask's own derivative is taken as one.

    Ramanujan et al. (2020), section 3.2: the gradient of a score is that of the weight times the base weight. The
    scale is left out of it: it is the same for a whole channel, and Adam's step does not depend on it.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scale: Tensor, base: Tensor, sign: Tensor, threshold: Tensor, signed: bool
    ) -> Tensor:
        masked = (latent * sign > threshold) * base
        ctx.save_for_backward(masked, base)
        ctx.signed, ctx.scale_shape = signed, scale.shape
        return masked * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        masked, base = ctx.saved_tensors
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            rows = torch.linalg.vecdot(gradient.flatten(1), masked.flatten(1))
            scale_gradient = (rows if ctx.scale_shape[0] == len(rows) else rows.sum()).view(ctx.scale_shape)
        latent_gradient = None
        if ctx.needs_input_grad[0]:
            latent_gradient = gradient if ctx.signed else gradient * base.abs()
        return latent_gradient, scale_gradient, None, None, None, None
