"""Which sign a weight has, given those of its neighbours: the model of flips for the coding ``range``. No torch.

Filters are smooth, so that neighbours in a window have the same sign more often than not. Where there is no window,
whole columns and rows of a matrix lean to one side. A weight whose neighbours lean to the negative side is asked for
the other way round, which leaves half the contexts.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .counting import Counts, Integers, blocks
from .rangecoding import CERTAIN, Booleans, Model

# Sums of neighbours count up to here; leanings of columns and rows have one step more.
LARGEST = 3
LEANINGS = (1, 2, 4, 8)
N_CONTEXTS = 9 * (len(LEANINGS) + 1)


def signs_reference(above: Integers, new: Booleans) -> Model:
    """Plain and slow :func:`signs`: one weight at a time."""
    n_o, n_i, *window = above.shape
    places, counts = [*itertools.product(*map(range, window))], Counts([CERTAIN // 2] * N_CONTEXTS)
    alone = len(places) == 1
    columns = [[int(np.sign(above[o, i, *places[0]])) for o in range(n_o)] if alone else [] for i in range(n_i)]
    for first, last in blocks(n_o):
        asked = []
        for o, i, place in itertools.product(range(first, last), range(n_i), places):
            if not new[o, i, *place]:
                continue
            if alone:
                row = [int(np.sign(above[o, other, *place])) for other in range(n_i)]
                hints = _leaning_reference(columns[i]), _leaning_reference(row)
            else:
                distances = [sum(abs(a - b) for a, b in zip(place, other, strict=True)) for other in places]
                values = [int(above[o, i, *other]) for other in places]
                near = sum(value for value, distance in zip(values, distances, strict=True) if distance == 1)
                far = sum(value for value, distance in zip(values, distances, strict=True) if distance != 1)
                hints = max(-LARGEST, min(LARGEST, near)), max(-LARGEST, min(LARGEST, far))
            turn = -1 if hints < (0, 0) else 1
            asked.append((i, turn, 9 * turn * hints[0] + turn * hints[1] + 4))
        contexts = np.array([context for *_, context in asked], np.int64)
        chances = counts.chances(contexts)
        turned = np.array([turn < 0 for _, turn, _ in asked], bool)
        bits = yield np.where(turned, CERTAIN - chances, chances)
        counts.see(contexts, bits != turned)
        for (i, *_), bit in zip(asked, bits, strict=True):
            columns[i].append(-1 if bit else 1)


def _leaning_reference(signs: list[int]) -> int:
    total, n = sum(signs), sum(sign != 0 for sign in signs)
    return (1 if total > 0 else -1) * sum(total * total >= leaning * leaning * n > 0 for leaning in LEANINGS)


def signs(above: Integers, new: Booleans) -> Model:
    """Chances that weights are negative.

    Args:
        above: [O, I, ...], what the planes above say of the weights; of those that are new it is 0.
        new: bool of the same shape; bits are asked for where it is true, in row-major order.
    """
    n_k, counts = math.prod(above.shape[2:]), Counts([CERTAIN // 2] * N_CONTEXTS)
    flat = (*above.shape[:2], n_k)
    fresh, signs_above = new.reshape(flat), np.sign(above.reshape(flat)[:, :, :1])
    columns, n_columns = signs_above.sum((0, 2)), np.abs(signs_above).sum((0, 2))
    if n_k == 1:
        second = _leanings(signs_above.sum((1, 2)), np.abs(signs_above).sum((1, 2)))[:, None, None]
    else:
        near = _neighbours(above).reshape(flat)
        far = above.reshape(flat).sum(2, keepdims=True) - near
        first, second = np.clip(near, -LARGEST, LARGEST), np.clip(far, -LARGEST, LARGEST)
    for begin, end in blocks(len(above)):
        block = fresh[begin:end]
        if n_k == 1:
            hints = np.broadcast_to(_leanings(columns, n_columns)[None, :, None], block.shape)[block]
        else:
            hints = first[begin:end][block]
        others = np.broadcast_to(second[begin:end], block.shape)[block]
        turned = (hints < 0) | ((hints == 0) & (others < 0))
        contexts = 9 * np.abs(hints) + np.where(turned, -others, others) + 4
        chances = counts.chances(contexts)
        bits = yield np.where(turned, CERTAIN - chances, chances)
        counts.see(contexts, bits != turned)
        if n_k == 1:
            n_new, negative = block.sum((0, 2)), np.zeros(block.shape, np.int64)
            negative[block] = bits
            columns, n_columns = columns + n_new - 2 * negative.sum((0, 2)), n_columns + n_new


def _leanings(totals: Integers, counts: Integers) -> Integers:
    """How far sums of so many signs are from even: so many standard deviations of a fair coin, in octaves."""
    steps = sum((totals * totals >= leaning * leaning * counts).astype(np.int64) for leaning in LEANINGS)
    return np.where(counts == 0, 0, np.where(totals < 0, -steps, steps))


def _neighbours(values: Integers) -> Integers:
    """Sum over the next and last place along each dimension of the window."""
    total = np.zeros_like(values)
    for dimension in range(2, values.ndim):
        into, of = np.moveaxis(total, dimension, 0), np.moveaxis(values, dimension, 0)
        into[1:] += of[:-1]
        into[:-1] += of[1:]
    return total
