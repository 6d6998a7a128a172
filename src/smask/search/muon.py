"""Muon: steps that are as long in every direction of a matrix, for scores of convolutions.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the running mean of the gradients of a
matrix is replaced by an orthogonal matrix near it, so that what few inputs have in common moves scores as far as what
most of them have. That steps are as long as some of Adam at the same rate is from Liu et al., "Muon is Scalable for LLM
Training" (2025), section 2.2. ``torch.optim.Muon`` takes matrices only, on one process, and reads its rate from memory
in every step, which recorded steps (:mod:`smask.search.recording`) forbid.

What it brings, and where nothing, is in docs/ablations.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .scores import MaskedWeight

# Of a running mean; Jordan et al. have the same.
MOMENTUM = 0.95
# Root mean square of a step over the rate, but for what N_STEPS leave to be done; Liu et al. have a third of it. Of a
# ResNet-18 0.36 and 1.0 found worse masks, by 1.4 and 0.6 points.
STEP = 0.6
# The quintic of Jordan et al., and how often it is applied; they do five times. In a search of a ResNet-18 the cosine
# to the nearest orthogonal matrix is 0.983 on average with four as with six, 0.91 with two.
COEFFICIENTS, N_STEPS = (3.4445, -4.7750, 2.0315), 4  # even, see below
TINY = torch.finfo(torch.float32).tiny
# Layers that a CUDA device works on at a time: products of one are too small to fill it.
N_STREAMS = 4


def orthogonal(matrix: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, by its singular value decomposition.

    Args:
        matrix: float32 [R, K], of full rank.
        dtype: Of the result; the decomposition is in float32.
    """
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return torch.mm(left, right).to(dtype)


def orthogonal_by_products(matrix: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Towards the same by matrix products alone (Newton-Schulz iterations).

    Singular values of 0.006 of the norm and more end between 0.67 and 1.21, smaller ones are left behind.

    Args:
        matrix: float32 [R, K]; one of zeros stays that.
        dtype: Of the products and the result.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = torch.div(matrix, torch.linalg.vector_norm(matrix).clamp(min=TINY)).to(dtype)
    x = x.T if is_tall else x
    # Two iterations at once are two products with all columns instead of four, and five of rows with rows instead of
    # two. More at once were not tried: errors of bfloat16 in the square of a small singular value grow in each.
    n_at_once = 2 if x.shape[1] >= 2 * x.shape[0] else 1
    for _ in range(0, N_STEPS, n_at_once):
        square = torch.mm(x, x.T)
        factor = _factor(square)
        if n_at_once == 2:
            factor = torch.mm(_factor(torch.mm(torch.mm(factor, square), factor)), factor)
        x = torch.mm(factor, x)
    return x.T if is_tall else x


def _factor(square: Tensor) -> Tensor:
    """What an iteration multiplies a matrix with, of its product with its transpose."""
    a, b, c = COEFFICIENTS
    factor = torch.addmm(square, square, square, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class AdamMuon(torch.optim.AdamW):
    """Fused AdamW; parameters of groups with ``muon`` take steps of Muon.

    Args:
        groups: Of parameters, each with an entry ``muon``.
        layers: Those whose latents are in these groups.
        dtype: Of the products of Muon.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], layers: Iterable[MaskedWeight], *, dtype: torch.dtype, capturable: bool
    ) -> None:
        super().__init__(groups, fused=True, capturable=capturable)
        # Where gradients of float16 overflow all of a step is left out, not only the part of fused Adam, which could
        # do that by itself.
        self._step_supports_amp_scaling = False
        self._layers: Mapping[nn.Parameter, MaskedWeight] = {layer.latent: layer for layer in layers}
        self._dtype = dtype
        self._streams: list[torch.cuda.Stream] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have a gradient; those of Muon have none after it."""
        groups = [group for group in self.param_groups if group["muon"]]
        turned = [(latent, group) for group in groups for latent in group["params"] if latent.grad is not None]
        self._turn_all(turned)
        for latent, _ in turned:
            latent.grad = None
        return super().step(closure)

    def _turn_all(self, turned: Sequence[tuple[nn.Parameter, Mapping[str, Any]]]) -> None:
        """One layer after the other; on a CUDA device some at a time, also in a recording."""
        device = turned[0][0].device if turned else torch.device("cpu")
        if device.type != "cuda":
            for latent, group in turned:
                self._turn(latent, group["lr"], group["weight_decay"])
            return
        here = torch.cuda.current_stream(device)
        self._streams = self._streams or [torch.cuda.Stream(device) for _ in range(N_STREAMS)]  # type: ignore[no-untyped-call]
        for stream in self._streams:
            stream.wait_stream(here)
        for place, (latent, group) in enumerate(turned):
            with torch.cuda.stream(self._streams[place % N_STREAMS]):
                self._turn(latent, group["lr"], group["weight_decay"])
        for stream in self._streams:
            here.wait_stream(stream)

    def _turn(self, latent: nn.Parameter, lr: float | Tensor, decay: float) -> None:
        state, layer, gradient = self.state[latent], self._layers[latent], latent.grad
        if not state:
            state["momentum"] = torch.zeros_like(latent)
        assert gradient is not None
        mean = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        # As Nesterov has it: the newest gradient counts once more.
        ahead = layer.whole(gradient.lerp_(mean, MOMENTUM)).flatten(1)
        turned = orthogonal_by_products(ahead, dtype=self._dtype)
        latent.mul_(1 - lr * decay)
        step = layer.part(turned).to(torch.float32).view_as(latent)
        latent.sub_(step.mul_(lr * (STEP * math.sqrt(max(ahead.shape)))))
