"""The search loop: trains scores of a frozen random network and turns them into a model that is a file."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import arch_of
from ..bases import N_WEIGHTS_PER_WORD
from ..errors import ArgumentError, UnsupportedError
from ..recipe import EXTERNAL, Recipe, attach
from ..reconstruction import CodedTensor, reconstruct
from .densities import layer_densities
from .methods import METHODS
from .scores import MaskedWeight
from .steps import N_REFRESH, Search, maskable, masked_weights, zero_bias


@dataclass(frozen=True)
class Progress:
    """State of a running search, handed to the progress callback every few steps.

    Attributes:
        step, n_steps: Steps done and steps in all.
        epoch, n_epochs: Epoch now running, from 1, and epochs in all.
        loss: Of the last batch.
        density: Kept weights over weights now.
    """

    step: int
    n_steps: int
    epoch: int
    n_epochs: int
    loss: float
    density: float


def find_masks(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    method: str = "edge-popup",
    density: float = 0.04,
    density_rule: str = "erk",
    first_density: float | None = None,
    last_density: float | None = None,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    base: str = "signed",
    scale: str = "channel",
    learn_scale: bool = True,
    learn_bias: bool = True,
    float_dtype: torch.dtype = torch.bfloat16,
    hold: float = 0.25,
    settle: float = 0.1,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    device: torch.device | str = "cpu",
    meta: dict[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> nn.Module:
    """Searches which weights of a frozen, seed-generated network to keep.

    Weights of linear and convolution layers become base weights of the seed under a mask; scales, biases and norms
    are trained beside the scores and stay floats. The density falls from one half to its end on a cubic curve, holds,
    and the masks are fixed with exact counts for the last part, in which only the floats still learn.

    Args:
        model: Any module; it is copied, not changed. Parameters that are not masked are trained if they require a
            gradient. A model from :mod:`smask.architectures` needs no module at load.
        batches: Sized and iterable once an epoch; gives (inputs, targets).
        method: One of :data:`smask.search.methods.METHODS`.
        density: Kept weights over all weights of masked layers, in (0, 1].
        density_rule: ``erk`` or ``uniform``, see :func:`smask.search.densities.layer_densities`.
        first_density, last_density: Densities of the first and last layer, in (0, 1].
        epochs: Passes over the batches.
        lr: Learning rate of Adam at the start; it follows half a cosine to zero.
        seed: Of the base weights and of the search, 0 to 2**64 - 1.
        base: ``signed``, ``uniform`` or ``normal``.
        scale: ``channel`` or ``tensor``.
        learn_scale: Whether scales are trained; else they keep the spread of He initialisation at the end density.
        learn_bias: Whether biases of masked layers are trained; else they are zero.
        float_dtype: Precision to which scales, biases and norms are rounded at the end.
        hold: Part of the search at the end density.
        settle: Last part of the search, with masks fixed.
        loss: (outputs, targets) to a scalar.
        device: Where to search.
        meta: Free text to be written into the file.
        progress: Called every few steps.

    Returns:
        A copy of the model on the CPU with its final weights, carrying its recipe: :func:`smask.save` writes it.

    Raises:
        ArgumentError: A value out of range, a model without a layer to mask, no batches, a loss that is not finite.
        UnsupportedError: An unknown method, base, density rule or scale.
    """
    _check(method, base, scale, epochs, lr, seed, hold, settle)
    n_batches = len(batches) if isinstance(batches, Sized) else 0
    if not n_batches:
        raise ArgumentError("batches", type(batches).__name__, "an iterable that has a length and is not empty")
    target = torch.device(device)
    original, model = model, copy.deepcopy(model).to(target)
    model.train()
    weights = maskable(model)
    densities = layer_densities(
        {name: weight.shape for name, weight in weights.items()},
        density=density, rule=density_rule, first=first_density, last=last_density,
    )  # fmt: skip
    with (
        torch.random.fork_rng(devices=[target] if target.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed % 2**63)
        layers = masked_weights(
            weights,
            densities,
            METHODS[method],
            base=base,
            seed=seed,
            per_channel=scale == "channel",
            learn_scale=learn_scale,
        )
        for name in weights:
            zero_bias(model.get_submodule(name.rpartition(".")[0]), learn=learn_bias)
        search = Search(model, layers, epochs * n_batches, lr=lr, hold=hold, settle=settle)
        step = 0
        for epoch in range(epochs):
            for x, y in batches:
                value = search.step(x.to(target), y.to(target), loss)
                step += 1
                if step % N_REFRESH == 0 or step == search.n_steps:
                    now = float(value)
                    if not math.isfinite(now):
                        raise ArgumentError(
                            "lr", lr, f"a rate at which the loss stays finite; it was {now} at step {step}"
                        )
                    if progress:
                        progress(Progress(step, search.n_steps, epoch + 1, epochs, now, search.density()))
    recipe = Recipe(seed, _coded(layers, search.fix(), float_dtype), dict(arch_of(original) or EXTERNAL), meta or {})
    return _finished(original, model, recipe, float_dtype)


def _check(method: str, base: str, scale: str, epochs: int, lr: float, seed: int, hold: float, settle: float) -> None:
    for what, got, known in (
        ("method", method, tuple(METHODS)),
        ("base", base, tuple(N_WEIGHTS_PER_WORD)),
        ("scale", scale, ("channel", "tensor")),
    ):
        if got not in known:
            raise UnsupportedError(what, got, known)
    if epochs < 1:
        raise ArgumentError("epochs", epochs, "1 or more")
    if not (lr > 0 and math.isfinite(lr)):
        raise ArgumentError("lr", lr, "a number above 0")
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", seed, "0 to 2**64 - 1")
    if not (hold >= 0 and settle >= 0 and hold + settle < 1):
        raise ArgumentError("hold and settle", (hold, settle), "parts that leave time to search")


def _coded(
    layers: dict[str, MaskedWeight], masks: dict[str, Tensor], float_dtype: torch.dtype
) -> dict[str, CodedTensor]:
    return {
        name: CodedTensor(
            shape=tuple(layer.weight.shape),
            stream=layer.stream,
            planes=(torch.from_numpy(np.packbits(masks[name].numpy(), bitorder="little")),),
            scale=_rounded(layer.scale.detach().flatten().cpu(), float_dtype),
            base=layer.kind,
        )
        for name, layer in layers.items()
    }


def _finished(original: nn.Module, trained: nn.Module, recipe: Recipe, float_dtype: torch.dtype) -> nn.Module:
    """A copy of the original with reconstructed weights and rounded floats, in the original order of its state."""
    found, state = trained.state_dict(), {}
    for name, tensor in original.state_dict().items():
        if name in recipe.coded:
            state[name] = reconstruct(recipe.coded[name], recipe.seed).to(tensor.dtype)
        else:
            value = found[name].cpu()
            state[name] = _rounded(value, float_dtype) if value.is_floating_point() else value
    model = copy.deepcopy(original)
    model.load_state_dict(state, strict=True, assign=True)
    attach(model, recipe)
    return model.cpu().eval()


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).to(tensor.dtype)
