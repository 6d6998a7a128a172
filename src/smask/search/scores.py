"""One masked weight: frozen base, trained scores, straight-through gradient.

A score s says how much a weight is wanted; the weight is kept where s > threshold. What is trained is the latent
v = s * sign(base): the gradient of the loss in v is then the gradient in the weight itself (times |base|, which is 1
for the signed base), so that the backward pass costs nothing, and Adam, whose step does not depend on the sign of a
coordinate, moves exactly as it would on s.

The module keeps its own weight parameter. Before a pass the masked weights are written into it; after the backward
pass its gradient is handed on to latents and scale. Autograd sees an ordinary module, whatever that module is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import bases

# Thresholds come from a sample of this many scores: a standard error of 0.4 % of the weights at density 0.5, of 0.1 %
# at density 0.03. Exact counts come once, at the end.
N_SAMPLE = 1 << 14


class MaskedWeight:
    """Scores, base and scale of one weight parameter.

    Attributes:
        weight: The module's parameter, float32 [C, ...].
        latent: Trained latents, float32 [C, ...].
        scale: Trained factor, float32 [C, 1, ...] or [1, 1, ...].
        base: Frozen base weights, never saved: the seed regenerates them.
        sign: Their signs; the same tensor for the signed base.
        threshold: float32 []; kept are the scores above it.
        density: Kept weights over weights at the end.
        kept: Base weights under the final mask once it is fixed, else None.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        kind: str,
        seed: int,
        stream: int,
        per_channel: bool,
        density: float,
        start: float,
    ) -> None:
        n, device = weight.numel(), weight.device
        values = bases.base_weights(kind, seed, stream=stream, start=0, n_weights=n, device=device)
        self.weight, self.kind, self.stream, self.density = weight, kind, stream, density
        self.base = values.view(weight.shape)
        self.sign = self.base if kind == "signed" else self.base.sign()
        self.threshold = torch.zeros((), device=device)
        self.kept: Tensor | None = None
        self.latent = nn.Parameter(self.sign.clone())
        # He et al., "Delving Deep into Rectifiers" (2015), section 2.2, with the fan-in that the mask leaves.
        fan_in = max(1.0, weight[0].numel() * start)
        deviation = math.sqrt(2.0 / fan_in) / float(self.base.square().mean().sqrt())
        shape = (weight.shape[0] if per_channel else 1, *[1] * (weight.dim() - 1))
        self.scale = nn.Parameter(torch.full(shape, deviation, device=device))
        self._sampled = _sample(n, device)
        # Fresh memory costs more than the arithmetic: products go to the same place in every step.
        self._scratch = torch.empty_like(self.base)

    @torch.no_grad()
    def write(self) -> None:
        """Puts scale * base * [score > threshold] into the module."""
        if self.kept is not None:
            torch.mul(self.kept, self.scale, out=self.weight)
        else:
            # In place over one buffer of floats: booleans would cost a conversion.
            torch.mul(self.latent, self.sign, out=self.weight).gt_(self.threshold).mul_(self.base).mul_(self.scale)

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Hands the gradient of the written weight on to latents and scale.

        Straight-through (Ramanujan et al. 2020, section 3.2): the mask's own derivative is taken as one, so that the
        gradient of a score is that of the weight times the base weight. The scale is left out of it: it is the same
        for a whole channel, and Adam's step does not depend on it.
        """
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is None:  # the module took no part in this pass
            self.latent.grad = self.scale.grad = None
            return
        if self.scale.requires_grad:
            rows = torch.mul(gradient, self.weight, out=self._scratch).flatten(1).sum(1)
            total = (rows if len(self.scale) == len(rows) else rows.sum()).view(self.scale.shape)
            # The derivative is that of the unscaled weights; a scale of exactly zero (0 / 0) stays where it is.
            self.scale.grad = total.div_(self.scale).nan_to_num_(0.0)
        if self.kept is None:
            self.latent.grad = gradient if self.kind == "signed" else gradient.mul_(self.base.abs())

    def scores(self) -> Tensor:
        """Scores, float32 [C, ...]."""
        return self.latent.detach() * self.sign

    @torch.no_grad()
    def refresh(self, density: float) -> None:
        """Puts the threshold where about ``density`` of the scores lie above it, judged by a sample."""
        if density >= 1:
            self.threshold.fill_(-math.inf)
            return
        sample = self.latent.flatten()[self._sampled] * self.sign.flatten()[self._sampled]
        # Never all of them: a layer without any weight has no gradient that could bring one back.
        below = min(max(round((1 - density) * len(sample)), 1), max(1, len(sample) - 1))
        # kthvalue is the faster on a CPU and slow on CUDA.
        self.threshold.copy_(sample.sort().values[below - 1] if sample.is_cuda else sample.kthvalue(below).values)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.base.numel()

    @torch.no_grad()
    def order(self) -> Tensor:
        """Indices of the weights, int64 [n_weights] on the CPU, highest score first; equal ones in order of index."""
        return self.scores().flatten().cpu().sort(descending=True, stable=True).indices

    def keep(self, mask: Tensor) -> None:
        """Fixes the mask for good: bool [n_weights] on the CPU."""
        self.kept = self.base * mask.view(self.base.shape).to(self.base.device)
        self.latent.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What is not regenerated from the seed, not copied."""
        return {"latent": self.latent.detach(), "scale": self.scale.detach(), "threshold": self.threshold}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], *, mask: Tensor | None) -> None:
        """Takes over what :meth:`tensors` gave, and the mask if it was fixed then."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        if mask is not None:
            self.keep(mask)


def _sample(n_weights: int, device: torch.device) -> Tensor:
    """Fixed random indices. An even stride is a trap: where it divides the length of a row it sees but few columns."""
    if n_weights <= N_SAMPLE:
        return torch.arange(n_weights, device=device)
    random = torch.Generator().manual_seed(n_weights)
    return torch.randint(n_weights, (N_SAMPLE,), generator=random).sort().values.to(device)
