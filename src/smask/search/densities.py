"""How many weights each layer keeps, and when.

``erk`` gives a layer a density in proportion to the sum of its dimensions over their product, as Erdős-Rényi-Kernel
does (Evci et al., "Rigging the Lottery", ICML 2020, section 3); ``uniform`` gives every layer the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import ArgumentError, UnsupportedError

RULES = ("erk", "uniform")
# A plane costs most bytes at one half; a rule never goes past it on its own.
DENSEST = 0.5


def check_density(name: str, density: float) -> float:
    """Raises ArgumentError unless 0 < density <= 1."""
    if not 0 < density <= 1:  # also refuses NaN
        raise ArgumentError(name, density, "a number above 0 and at most 1")
    return density


def layer_densities(
    shapes: Mapping[str, Sequence[int]],
    *,
    density: float,
    rule: str = "erk",
    first: float | None = None,
    last: float | None = None,
) -> dict[str, float]:
    """Density of each layer, such that all layers together keep ``density`` of their weights.

    A layer that the rule would give more than one half (more than ``density`` where that is higher) gets just that,
    and the others share what is left over. Layers set by ``first`` and ``last`` stay outside the sharing.

    Args:
        shapes: Weight shape by layer name, in order.
        density: Kept weights of all layers over weights of all layers, in (0, 1].
        rule: One of :data:`RULES`.
        first, last: Densities of the first and the last layer, in (0, 1].

    Raises:
        ArgumentError: A density outside (0, 1], or nothing left for the other layers.
        UnsupportedError: An unknown rule.
    """
    check_density("density", density)
    if rule not in RULES:
        raise UnsupportedError("density rule", rule, RULES)
    names = list(shapes)
    fixed: dict[str, float] = {}
    if first is not None and names:
        fixed[names[0]] = check_density("first density", first)
    if last is not None and names:
        fixed[names[-1]] = check_density("last density", last)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    weight = {name: 1.0 if rule == "uniform" else sum(shape) / sizes[name] for name, shape in shapes.items()}
    ceiling = max(DENSEST, density)
    while True:
        free = [name for name in names if name not in fixed]
        if not free:
            return {name: fixed[name] for name in names}
        budget = density * sum(sizes.values()) - sum(fixed[name] * sizes[name] for name in fixed)
        if budget <= 0:
            raise ArgumentError("density", density, "more than the first and last layers keep by themselves")
        share = budget / sum(weight[name] * sizes[name] for name in free)
        over = [name for name in free if share * weight[name] > ceiling]
        if not over:
            return {name: fixed.get(name, share * weight[name]) for name in names}
        fixed |= dict.fromkeys(over, ceiling)


def cubic(progress: float, *, start: float, end: float) -> float:
    """Density at a point of the descent: fast first, slow last (Zhu and Gupta, "To prune, or not to prune", 2017).

    Args:
        progress: 0 at the beginning, 1 or more at the end.
        start, end: Densities there.
    """
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return end + (start - end) * left**3
