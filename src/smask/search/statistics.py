"""Statistics of batch norms: taken out of a model that is only run, and measured again for one that is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .nested import called

PARTS = ("weight", "bias", "running_mean", "running_var")


def folded(model: nn.Module, *, but: Collection[str] = ()) -> dict[str, Tensor]:
    """State of batch norms whose weights and biases say it all: their mean is 0 and their variance 1.

    A norm that is run is one factor and one term for each channel; four numbers are for one that is trained. Norms
    without weights or biases, that share them with others, or whose own are not to be trained are left out.

    Args:
        model: As searched.
        but: State-dict names; norms that have one of these are left out too.

    Returns:
        By state-dict name, on the devices of the model.
    """
    found: dict[str, Tensor] = {}
    for path, norm in _norms(model):
        names = names_of(path)
        if not {*names}.isdisjoint(but) or not (norm.weight.requires_grad and norm.bias.requires_grad):
            continue
        found |= zip(names, fold([getattr(norm, part).detach() for part in PARTS], norm.eps), strict=True)
    return found


def foldable(model: nn.Module) -> dict[str, float]:
    """Paths of the batch norms that weights and biases can say all of, each with the epsilon of its variance."""
    return {path: norm.eps for path, norm in _norms(model)}


def names_of(path: str) -> list[str]:
    """State-dict names of the parts of a batch norm, in the order of :data:`PARTS`."""
    return [f"{path}.{part}" if path else part for part in PARTS]


def fold(parts: Sequence[Tensor], eps: float) -> tuple[Tensor, ...]:
    """Weight, bias, mean 0 and variance 1 of a norm that gives what a batch norm with these parts gives."""
    weight, bias, mean, variance = (part.double() for part in parts)
    factor = weight / (variance + eps).sqrt()
    new = (factor * (1 + eps) ** 0.5, bias - mean * factor, torch.zeros_like(mean), torch.ones_like(mean))
    return tuple(value.to(part.dtype) for value, part in zip(new, parts, strict=True))


def lasting(model: nn.Module) -> list[Tensor]:
    """Floating buffers of a model but the statistics that :func:`folded` takes out."""
    gone = {id(getattr(norm, part)) for _, norm in _norms(model) for part in PARTS[2:]}
    return [buffer for buffer in model.buffers() if buffer.is_floating_point() and id(buffer) not in gone]


@torch.no_grad()
def restore(model: nn.Module, inputs: Iterable[Any]) -> int:
    """Measures what :func:`folded` left out, so that a model can be trained on: what it gives does not change.

    Norms whose mean is 0 and variance 1, but whose weights and biases are not those of a new one, take mean and
    variance of what they see, and their weights and biases make up for it.

    Args:
        model: Is changed; any mode, which it keeps.
        inputs: Some batches, each what the model takes: a tensor, a tuple or list of arguments, a mapping of keywords.

    Returns:
        How many norms were.
    """
    sums: dict[Any, tuple[int, Tensor | float, Tensor | float]] = {}

    def see(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        values, (n, total, squares) = given[0].double().movedim(1, 0).flatten(1), sums.get(norm, (0, 0.0, 0.0))
        sums[norm] = (n + values.shape[1], total + values.sum(1), squares + values.square().sum(1))

    norms = [norm for _, norm in _norms(model) if _is_folded(norm)]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    model.eval()
    try:
        for x in inputs:
            called(model, x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for norm, (n, total, squares) in sums.items():
        mean = torch.as_tensor(total) / n
        variance = (torch.as_tensor(squares) / n - mean.square()).clamp_(min=0)
        factor = norm.weight.double() / (1 + norm.eps) ** 0.5
        new = (factor * (variance + norm.eps).sqrt(), norm.bias + mean * factor, mean, variance)
        for part, tensor in zip(PARTS, new, strict=True):
            getattr(norm, part).copy_(tensor)
    return len(sums)


def _is_folded(norm: Any) -> bool:
    still = not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())
    return still and not (bool((norm.weight == 1).all()) and not bool(norm.bias.any()))


def _norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Batch norms that have all of their parts for themselves."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for path, norm in model.named_modules():
        parts = [getattr(norm, part, None) for part in PARTS] if isinstance(norm, _BatchNorm) else []
        if parts and all(part is not None for part in parts) and all(owners[id(p)] == 1 for p in parts[:2]):
            yield path, norm
