"""Rounding with error feedback: what one weight of a row is off, the others that share its inputs make good.

Weights of a layer are rounded column by column; the error of a column is spread over those still to come, as far as
their inputs have to do with its own (Frantar et al., "GPTQ", ICLR 2023, section 3). Here a level also costs its bits:
a column whose error the others can make good is rounded coarsely, one that nothing can replace finely, all at one slope
of error over bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distillation import outputs_of
from .rounding import SLOPE, Floats, Levels, Rule

# This part of the mean of the diagonal is added to it, as in GPTQ.
DAMPING = 0.01
# Columns after which errors are handed on to all others at once.
N_BLOCK = 64
# Wider inputs would take minutes to solve for.
MOST_INPUTS = 8192
# Positions of one input that are looked at.
N_POSITIONS = 256

Moments = npt.NDArray[np.float64]


class Listener:
    """Second moments of the inputs of layers, gathered as a network runs.

    Args:
        model: Its linear and convolution layers are listened to.
        names: Names of their weights.

    Attributes:
        moments: float64 [groups, inputs, inputs] by name of the weight.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.moments: dict[str, Moments] = {}
        self._hooks = []
        wanted = set(names)
        for name, module in model.named_modules():
            weight = f"{name}.weight".lstrip(".")
            fits = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and weight_columns(module) <= MOST_INPUTS
            if weight in wanted and fits:
                self._hooks.append(module.register_forward_pre_hook(self._hook(weight)))

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def take(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen = columns(module, arguments[0].detach().float())
            moments = (seen.transpose(1, 2) @ seen).double().numpy()
            self.moments[name] = self.moments.get(name, 0) + moments

        return take

    def close(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()


def listen(model: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Second moments of the inputs of layers over batches; of layers that are of another kind there are none."""
    listener = Listener(model, names)
    try:
        with torch.no_grad():
            for batch in batches:
                outputs_of(model(batch))
    finally:
        listener.close()
    return listener.moments


def weight_columns(module: nn.Module) -> int:
    """Weights of one output."""
    assert isinstance(module.weight, Tensor)
    return module.weight[0].numel()


def columns(module: nn.Module, x: Tensor) -> Tensor:
    """What the weights of a layer are multiplied with, float32 [groups, positions, columns]."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    kernel, stride, dilation = (tuple(map(int, size)) for size in (module.kernel_size, module.stride, module.dilation))
    if isinstance(module, nn.Conv1d):
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    if isinstance(module.padding, str):
        x = F.pad(x, _same(kernel, dilation)) if module.padding == "same" else x
    else:
        sizes = tuple(map(int, module.padding))
        sizes = (0, *sizes) if isinstance(module, nn.Conv1d) else sizes
        x = F.pad(x, (sizes[1], sizes[1], sizes[0], sizes[0]))
    seen = F.unfold(x, kernel, dilation=dilation, stride=stride)
    # An odd stride over the positions meets all rows and columns of the image.
    seen = seen[:, :, :: seen.shape[2] // N_POSITIONS | 1]
    n, width, groups = len(x), seen.shape[1] // module.groups, module.groups
    return seen.reshape(n, groups, width, -1).permute(1, 0, 3, 2).reshape(groups, -1, width)


def _same(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    total = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return [side for whole in reversed(total) for side in (whole // 2, whole - whole // 2)]


def levels_fed_back(weights: Floats, moments: Moments, rule: Rule) -> Levels:
    """Signed levels of weights in steps.

    Args:
        weights: float32 [rows, columns], in steps; rows are those of all groups in turn.
        moments: float64 [groups, columns, columns]; second moments of the inputs.
        rule: Offset and prices of levels, from weights in the same steps.

    Returns:
        int32 [rows, columns].
    """
    parts = np.split(weights, len(moments))
    return np.concatenate([_one_group(part, group, rule) for part, group in zip(parts, moments, strict=True)])


def _one_group(weights: Floats, moments: Moments, rule: Rule) -> Levels:
    n_columns = weights.shape[1]
    levels = np.zeros(weights.shape, np.int32)
    if not len(rule.gains):
        return levels
    diagonal = np.diag(moments)
    mean = float(diagonal.mean())
    if not mean > 0 or not np.isfinite(moments).all():
        moments, mean = np.eye(n_columns), 1.0
    damped = moments / mean + DAMPING * np.eye(n_columns)
    # Inputs of much energy first: their errors find more columns that can make them good.
    order = np.argsort(-np.diag(damped), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    # The upper factor of the inverse: row j holds how an error in column j spreads over those after it.
    factor = np.linalg.cholesky(inverse).T
    # What an error costs once the others have made good what they can; one is its mean over the layer.
    prices = np.diag(factor) ** 2
    prices /= np.exp(np.log(prices).mean())
    rest = weights[:, order].astype(np.float64)
    for start in range(0, n_columns, N_BLOCK):
        end = min(start + N_BLOCK, n_columns)
        errors = np.zeros((len(weights), end - start))
        for column in range(start, end):
            pivot = factor[column, column]
            level, value = _cheapest(rest[:, column], rule, SLOPE * prices[column])
            levels[:, order[column]] = level
            errors[:, column - start] = (rest[:, column] - value) / pivot
            rest[:, column + 1 : end] -= np.outer(errors[:, column - start], factor[column, column + 1 : end])
        rest[:, end:] -= errors @ factor[start:end, end:]
    return levels


def _cheapest(aims: npt.NDArray[np.float64], rule: Rule, slope: float) -> tuple[Levels, npt.NDArray[np.float64]]:
    """Signed level of each aim and what it stands for: the least of squared error plus ``slope`` times bits."""
    magnitude = np.abs(aims)
    top = len(rule.gains)
    low = np.clip(np.floor(magnitude + rule.offset), 0, top - 1).astype(np.int32)
    below = np.where(low > 0, low - rule.offset, 0.0)
    above = low + 1 - rule.offset
    up = (above - magnitude) ** 2 + slope * rule.gains[low] < (below - magnitude) ** 2
    level = low + up
    # From one up nothing may still be cheaper: a gain is paid for each level on the way.
    value = np.where(up, above, below)
    paid = np.concatenate([[0.0], np.cumsum(rule.gains, dtype=np.float64)])
    nothing = magnitude**2 < (value - magnitude) ** 2 + slope * paid[level]
    level, value = np.where(nothing, 0, level), np.where(nothing, 0.0, value)
    negative = aims < 0
    return np.where(negative, -level, level).astype(np.int32), np.where(negative, -value, value)
