"""Steps of levels: which a file can hold, and which part of a checkpoint has which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .rounding import MAX_LEVEL

# Steps in which R-02 and float16 hold every scale.
SMALLEST_STEP, LARGEST_STEP = 2.0**-60, 2.0**60
NORMAL_F16 = (2.0**-14, 2.0**15)


@dataclass(frozen=True)
class Plan:
    """Steps for the floating elements of a checkpoint: each ``(end, step)`` holds up to that element, the first is 0.

    One part is one step for the whole model. Between two steps next to each other there may lie sizes that neither
    gives, since rounding takes a tensor, or all of them, to nothing at once. Sharing the weights between both is on
    the straight line between the two in size and in squared error (Cover and Thomas, "Elements of Information Theory",
    section 10.4, on the convexity of the rate-distortion function).
    """

    parts: tuple[tuple[int, float], ...] = ()

    def shortest(self) -> Plan:
        """Without parts that have no elements, and with equal ones joined."""
        parts: list[tuple[int, float]] = []
        for end, step in self.parts:
            if parts and parts[-1][1] == step:
                parts[-1] = max(end, parts[-1][0]), step
            elif end > (parts[-1][0] if parts else 0):
                parts.append((end, step))
        return Plan(tuple(parts) or self.parts[:1])

    def cut(self, start: int, n: int, multiple: int) -> list[tuple[int, float]]:
        """The parts of ``n`` elements from ``start`` on as (number of elements, step), cut at multiples."""
        found, last = [], 0
        for end, step in self.parts:
            place = min(n, max(0, end - start) // multiple * multiple)
            if place > last:
                found.append((place - last, step))
                last = place
        if last < n:
            found.append((n - last, self.parts[-1][1]))
        return found


def grid(step: float) -> float:
    """The nearest step that two bytes hold where its size allows."""
    step = min(LARGEST_STEP, max(SMALLEST_STEP, step))
    if NORMAL_F16[0] <= step <= NORMAL_F16[1]:
        return float(np.float16(step))
    return float(torch.tensor(step, dtype=torch.float32).bfloat16())


def step_for(step: float, largest: float) -> float:
    """The step, or the least multiple by a power of two with which a tensor has no more than sixteen planes."""
    while largest / step > MAX_LEVEL - 1:
        step *= 2
    return step
