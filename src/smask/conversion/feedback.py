"""Rounding with error feedback: what one weight of a row is off, the others that share its inputs make good.

Weights of a layer are rounded column by column; the error of a column is spread over those still to come, as far as
their inputs have to do with its own (Frantar et al., "GPTQ", ICLR 2023, section 3). Here a level also costs its bits:
a column whose error the others can make good is rounded coarsely, one that nothing can replace finely, all at one slope
of error over bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..search.distillation import outputs_of
from .rounding import SLOPE, Floats, Levels, Rule

# Parts of the mean of the diagonal that are added to it: little, as in GPTQ, or more, which is better where levels are
# few and an error that is handed on costs more bits than it saves.
DAMPINGS = (0.01, 0.1, 1.0)
# Columns after which errors are handed on to all others at once.
N_BLOCK = 64
# Wider inputs would take minutes to solve for.
MOST_INPUTS = 8192
# Positions of one input that are looked at.
N_POSITIONS = 256

Moments: TypeAlias = npt.NDArray[np.float64]


def listen(model: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Second moments of the inputs of linear and convolution layers as a network runs.

    Args:
        model: The network.
        names: Weights whose layers are listened to.
        batches: Its inputs.

    Returns:
        float64 [groups, columns, columns] by name of the weight; nothing for layers of other kinds or wider ones.
    """
    moments: dict[str, Moments] = {}
    hooks, wanted = [], set(names)

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if not arguments:  # called with names alone
                return
            seen = columns(module, arguments[0].detach().float())
            moments[name] = moments.get(name, 0.0) + (seen.transpose(1, 2) @ seen).double().numpy()

        return take

    for name, module in model.named_modules():
        weight = f"{name}.weight".lstrip(".")
        fits = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and weight_columns(module) <= MOST_INPUTS
        if weight in wanted and fits:
            hooks.append(module.register_forward_pre_hook(hook_of(weight)))
    try:
        with torch.no_grad():
            for batch in batches:
                outputs_of(model(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return moments


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


@dataclass(frozen=True, eq=False)
class Feedback:
    """How errors of the weights of one group of a layer are made good, and what they cost.

    Attributes:
        order: Columns, those whose inputs have most energy first: their errors find more that can make them good.
        factor: float64 [columns, columns], upper; row j says how the error of column j spreads over those after it.
        prices: float64 [columns]; cost of an error once the others have made good what they can, inverted, about 1.
    """

    order: npt.NDArray[np.int64]
    factor: Moments
    prices: Moments

    @classmethod
    def of(cls, moments: Moments, *, damping: float = DAMPINGS[0]) -> Feedback:
        """From the second moments of inputs, float64 [columns, columns]."""
        n_columns, mean = len(moments), float(np.diag(moments).mean()) if len(moments) else 0.0
        if not mean > 0 or not np.isfinite(moments).all():
            moments, mean = np.eye(n_columns), 1.0
        damped = moments / mean + damping * np.eye(n_columns)
        order = np.argsort(-np.diag(damped), kind="stable")
        factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
        prices = np.diag(factor) ** 2
        return cls(order, factor, prices / np.exp(np.log(prices).mean()))


def levels_fed_back(weights: Floats, feedbacks: Sequence[Feedback], rule: Rule) -> Levels:
    """Signed levels of weights in steps.

    Args:
        weights: float32 [rows, columns], in steps; rows are those of all groups in turn.
        feedbacks: One for each group.
        rule: Offset and prices of levels, from weights in the same steps.

    Returns:
        int32 [rows, columns].
    """
    parts = np.split(weights, len(feedbacks))
    return np.concatenate([_one_group(part, feedback, rule) for part, feedback in zip(parts, feedbacks, strict=True)])


def _one_group(weights: Floats, feedback: Feedback, rule: Rule) -> Levels:
    levels = np.zeros(weights.shape, np.int32)
    if not len(rule.gains):
        return levels
    n_columns, order, factor = weights.shape[1], feedback.order, feedback.factor
    rest = weights[:, order].astype(np.float64)
    for start in range(0, n_columns, N_BLOCK):
        end = min(start + N_BLOCK, n_columns)
        errors = np.zeros((len(weights), end - start))
        for column in range(start, end):
            level, value = _cheapest(rest[:, column], rule, SLOPE * feedback.prices[column])
            levels[:, order[column]] = level
            error = errors[:, column - start] = (rest[:, column] - value) / factor[column, column]
            rest[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
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
